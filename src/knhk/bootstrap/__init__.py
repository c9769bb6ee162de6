"""The composition root: the only room that names concrete classes. Builds, starts and stops everything.

One file for each room that it puts together; `node.py` is what every use of the engine shares, `serving.py` the server.
"""

from knhk.bootstrap.node import Node, embedded, run_async
from knhk.bootstrap.serving import serve
from knhk.bootstrap.stores import open_store

__all__ = ["Node", "embedded", "open_store", "run_async", "serve"]
