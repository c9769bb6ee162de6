"""The load process: reads a LoadSpec from standard input, puts the load on, writes a LoadResult to standard output.

A process of its own, so that its CPU time can be told from the server's and its work does not delay the harness.
"""

import asyncio
import gc
import sys

import msgspec
import uvloop

from bench.load_spec import LoadResult, LoadSpec
from bench.loops import ClosedLoop, Load, OpenLoop


async def put_on(spec: LoadSpec) -> LoadResult:
    """Run one stretch of load in this process."""
    load: Load = OpenLoop(spec) if spec.rate else ClosedLoop(spec)
    return await load.run()


def main() -> None:
    """Entry point of `python -m bench.load_process`."""
    spec = msgspec.json.decode(sys.stdin.buffer.read(), type=LoadSpec)
    # Nothing here makes cycles, and a collection would show as latency.
    gc.disable()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(put_on(spec))
    sys.stdout.buffer.write(msgspec.json.encode(result))


if __name__ == "__main__":
    main()
