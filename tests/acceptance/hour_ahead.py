"""KNHK on a machine whose clock is an hour ahead: `python -m tests.acceptance.hour_ahead serve …`"""

import sys
import time

AHEAD_S = 3600


def main() -> None:
    seconds, nanoseconds = time.time, time.time_ns
    time.time = lambda: seconds() + AHEAD_S
    time.time_ns = lambda: nanoseconds() + AHEAD_S * 1_000_000_000
    from knhk.__main__ import main as run

    sys.argv[0] = "knhk"
    run()


if __name__ == "__main__":
    main()
