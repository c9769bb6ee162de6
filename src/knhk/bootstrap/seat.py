"""One process of several: `python -m knhk.bootstrap.seat FD`. The supervisor starts it, and it ends with that.

FD is the process's end of the channel; what it works on comes on stdin, from the supervisor and from nobody else.
"""

import ctypes
import os
import pickle
import signal
import socket
import sys
from typing import Final

from knhk.bootstrap.local import Seat, loaded_of
from knhk.bootstrap.node import run_async
from knhk.bootstrap.serving import Sockets, ended, serve_on
from knhk.config import Loaded
from knhk.domain.errors import KnhkError
from knhk.observability.logs import configure, get
from knhk.platform.serving import listen, share
from knhk.processes.channel import Channel, Plan, Report

_LOOPBACK: Final = "127.0.0.1"
_PR_SET_PDEATHSIG: Final = 1


def main() -> None:
    """Work until a signal, or the end of the supervisor."""
    loaded, number, supervisor = pickle.load(sys.stdin.buffer)  # written by the supervisor
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != supervisor:  # it died before the kernel knew
        sys.exit(1)
    sys.path.append("")  # modules of actions in the working directory, as for the command
    configure(loaded.config.platform.log_level)
    sys.exit(ended(run_async(_work(loaded, number, socket.socket(fileno=int(sys.argv[1]))))))


async def _work(loaded: Loaded, number: int, end: socket.socket) -> int:
    channel = Channel(end, Plan)
    await channel.open()
    api = loaded.config.api
    try:
        sockets = Sockets(
            share(api.host, api.port, "api.port"), listen(_LOOPBACK, 0, "loopback"), listen(_LOOPBACK, 0, "loopback")
        )
        return await serve_on(loaded_of(loaded, number), sockets, Seat(number, loaded.config, channel))
    except KnhkError as error:
        get("knhk.serve").error(error.message, process=number, code=error.code, hint=error.advice)
        channel.say(Report(failure=(type(error).__name__, error.message, error.advice or "")))
        return 1
    finally:
        await channel.close()


if __name__ == "__main__":
    main()
