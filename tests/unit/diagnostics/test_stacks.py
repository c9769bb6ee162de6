"""Whom the watchdog blames, and what it reads from the fault handler."""

import asyncio
import json
import sys
import threading

from knhk.diagnostics import stacks
from knhk.diagnostics.stacks import Place

HERE = Place("own", "/app/own.py", 3)


def test_the_user_s_innermost_line_is_to_blame() -> None:
    library = Place("loads", json.__file__, 1)
    ours = Place("_perform", stacks.__file__, 1)
    caller = Place("caller", "/app/own.py", 9)
    assert stacks.to_blame([library, HERE, caller, ours]) == HERE
    assert stacks.to_blame([ours, library, ours]) == library
    assert stacks.to_blame([ours]) == ours


def test_tasks_and_threads_are_told_with_their_stacks() -> None:
    async def inner() -> None:
        await asyncio.sleep(30)

    async def outer() -> None:
        await inner()

    async def main() -> None:
        task = asyncio.create_task(outer(), name="wf-1/charge")
        await asyncio.sleep(0)
        found = await asyncio.to_thread(stacks.tasks, asyncio.get_running_loop())
        (row,) = [one for one in found["tasks"] if one["name"] == "wf-1/charge"]
        assert (row["workflow_id"], row["step"], row["state"]) == ("wf-1", "charge", "waiting")
        assert [place.partition(" ")[0].rpartition(".")[2] for place in row["stack"]] == ["sleep", "inner", "outer"]
        assert found["count"] >= 2
        assert stacks.tasks(asyncio.get_running_loop(), limit=1)["count"] >= 2
        task.cancel()

    asyncio.run(main())
    waiting = threading.Event()
    thread = threading.Thread(target=waiting.wait, name="waits")
    thread.start()
    (row,) = [one for one in stacks.threads() if one["name"] == "waits"]
    assert "wait" in row["stack"][0]
    waiting.set()
    thread.join()


def test_a_stack_is_read_from_what_the_fault_handler_wrote() -> None:
    text = (
        '  File "/app/own.py", line 3 in own\n  File "/y.py", line 4 in <module>\n'
        'Thread 0x00000000000000aa (most recent call first):\n  File "/x/other.py", line 1 in other\n\n'
    )
    assert stacks.from_fault_handler(text) == [HERE, Place("<module>", "/y.py", 4)]
    assert stacks.from_fault_handler("Thread 0x00 (most recent call first):") == []
    assert stacks.from_fault_handler("") == []


def test_frames_say_no_values() -> None:
    secret = "hunter2"  # a local variable of the frame that is looked at
    frame = sys._current_frames()[threading.get_ident()]
    assert secret not in str(stacks.culprit_of(frame))
    assert secret not in json.dumps(stacks.threads())
