"""KNHK on a machine whose clock is wrong: WRONG_BY_S seconds ahead, behind if negative.

WRONG_BY_S=3600 python -m tests.chaos.wrong_clock serve …
"""

import os
import sys
import time


def main() -> None:
    right_ns, wrong_by_ns = time.time_ns, int(float(os.environ["WRONG_BY_S"]) * 1e9)
    time.time_ns = lambda: right_ns() + wrong_by_ns
    time.time = lambda: time.time_ns() / 1e9
    from knhk.__main__ import main as run

    sys.argv[0] = "knhk"
    run()


if __name__ == "__main__":
    main()
