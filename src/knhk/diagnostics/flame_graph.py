"""A CPU profile as one HTML file that needs nothing else: flame graph, search, and the functions that cost most."""

from importlib import resources
from typing import Final

import msgspec

from knhk.diagnostics.profiles import all_stacks, top_functions, tree_of
from knhk.diagnostics.sampler import Profile

_TOP: Final = 30


def html(profile: Profile, title: str, about: str) -> bytes:
    """The page."""
    data = {
        "title": title,
        "about": about,
        "tree": tree_of(all_stacks(profile)),
        "top": top_functions(profile, _TOP),
    }
    template = resources.files("knhk.diagnostics").joinpath("flame_graph.html").read_bytes()
    # A name could hold the end of the script; in JSON the bracket may be written as an escape.
    return template.replace(b"__DATA__", msgspec.json.encode(data).replace(b"<", b"\\u003c"))
