"""Settings of the property tests: a busy machine makes no test fail, and a failure prints how to have it again."""

from hypothesis import settings

settings.register_profile("knhk", deadline=None, print_blob=True)
settings.load_profile("knhk")
