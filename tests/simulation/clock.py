"""Virtual time, which the project's own tests share with those of its users."""

from knhk.testing.virtual_time import EPOCH_NS, VirtualClock, VirtualLoop, in_virtual_time

__all__ = ["EPOCH_NS", "VirtualClock", "VirtualLoop", "in_virtual_time"]
