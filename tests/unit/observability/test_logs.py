"""Logs: one JSON object a line, no secrets, and no call that raises or waits."""

import io
import json
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from knhk.actions.registry import INVOCATION, Invocation
from knhk.domain import trace_context
from knhk.domain.expressions import Scope
from knhk.observability import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    target = io.StringIO()
    logs.configure("debug", target)
    yield target
    logs.configure("warning")
    logging.getLogger().handlers = [
        one for one in logging.getLogger().handlers if not isinstance(one, logs._LibraryHandler)
    ]


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    logs.flush()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_a_json_object(stream: io.StringIO) -> None:
    logs.get("knhk.test").bind(node="n1").info("ready", port=9090, path=None, took_s=0.5)
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "ready",
        "level": "info",
        "logger": "knhk.test",
        "node": "n1",
        "port": 9090,
        "path": None,
        "took_s": 0.5,
    }


def test_less_severe_lines_are_left_out(stream: io.StringIO) -> None:
    logs.configure("warning", stream)
    log = logs.get("knhk.test")
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.critical("d")
    assert [line["event"] for line in lines(stream)] == ["c", "d"]


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="none of debug"):
        logs.configure("loud")


def test_secrets_do_not_come_out(stream: io.StringIO) -> None:
    logs.get("knhk.test").info(
        "start at postgres://knhk:hunter2@db/x",
        client_secret="hunter2",
        password="hunter2",
        config={"api_key": "hunter2", "nested": [{"Authorization": "hunter2"}]},
        wrapped=SecretStr("hunter2"),
        header="Bearer hunter2hunter2",
        url="https://user:hunter2@host/",
        key_id="shown",
    )
    try:
        raise RuntimeError("no: amqp://knhk:hunter2@queue or ?x=1&access_token=hunter2&y or DB_PASSWORD=hunter2")
    except RuntimeError:
        logs.get("knhk.test").exception("failed", local="x")
    text = stream.getvalue() if lines(stream) else ""
    assert "hunter2" not in text
    assert "shown" in text
    assert "RuntimeError" in text


def test_the_console_shows_no_secrets_and_no_locals() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    logs.configure("info", terminal)
    hidden = "hunter" + str(2)
    try:
        raise RuntimeError(f"no: amqp://knhk:{hidden}@queue")
    except RuntimeError:
        logs.get("knhk.test").exception("failed", token=hidden)
    logs.flush()
    logs.configure("warning")
    assert "failed" in terminal.getvalue()
    assert "RuntimeError" in terminal.getvalue()
    assert hidden not in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")

    __str__ = __repr__


@pytest.mark.parametrize(
    "fields",
    [
        {"x": Hostile()},
        {"x": object()},
        {"x": "\ud800"},
        {"x": 1 << 200},
        {"x": {1: Hostile()}},
        {"event": "again"},
        {"level": "odd", "timestamp": 3, "logger": 1},
        {"x": b"\xff"},
        {"exc_info": "nothing"},
        {"": ""},
    ],
)
def test_nothing_that_is_logged_can_raise(stream: io.StringIO, fields: dict[str, Any]) -> None:
    logs.get("knhk.test").info("still %s here", **fields)
    (line,) = lines(stream)
    assert "still %s here" in line["event"]


def test_a_list_that_holds_itself_is_survived(stream: io.StringIO) -> None:
    endless: list[Any] = []
    endless.append(endless)
    logs.get("knhk.test").info("endless", x=endless)
    assert lines(stream)[0]["event"] == "endless"


def test_what_libraries_log_has_the_same_form(stream: io.StringIO) -> None:
    logging.getLogger("uvicorn.error").warning("port %d", 80)
    logging.getLogger("uvicorn.error").debug("noise")
    wrong = logging.LogRecord("uvicorn.error", logging.ERROR, "", 1, "port %d", ("wrong",), None)
    logs._LibraryHandler().emit(wrong)
    found = lines(stream)
    assert [line["event"] for line in found] == ["port 80", "port %d"]
    assert found[0]["logger"] == "uvicorn.error"


def test_a_stream_that_nobody_reads_does_not_hold_the_caller_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(io.StringIO):
        gate = threading.Event()

        def write(self, text: str) -> int:
            self.gate.wait()
            return super().write(text)

    stuck = Stuck()
    output = logs._Output()
    output.configure(10, stuck)
    began = time.monotonic()
    for _ in range(logs._QUEUED_LINES + 500):
        output.write("info", "line", {})
    assert time.monotonic() - began < 10
    stuck.gate.set()
    output.flush(10)
    output.write("info", "last", {})
    output.flush(10)
    told = [json.loads(line) for line in stuck.getvalue().splitlines()]
    assert sum(line.get("count", 0) for line in told if line["event"] == "log lines were dropped") >= 499
    assert told[-1]["event"] == "last"


def test_a_closed_stream_is_survived() -> None:
    closed = io.StringIO()
    closed.close()
    output = logs._Output()
    output.configure(10, closed)
    output.write("info", "line", {})
    output.flush(1)


def test_a_line_about_a_workflow_names_its_trace(stream: io.StringIO) -> None:
    logs.get("knhk.test").info("halted", workflow_id="wf-5")
    logs.get("knhk.test").info("nonsense", workflow_id="wf-x")
    first, second = lines(stream)
    assert first["trace_id"] == trace_context.trace_id(5).hex()
    assert "trace_id" not in second


def test_what_an_action_logs_names_its_attempt(stream: io.StringIO) -> None:
    invocation = Invocation("wf-5", "w", "charge", 2, "wf-5/charge", {}, {}, Scope({}, {}, {}), 0)
    token = INVOCATION.set(invocation)
    try:
        logging.getLogger("my_actions").error("card declined")
        logs.get("knhk.test").error("about another", workflow_id="wf-6")
    finally:
        INVOCATION.reset(token)
    own, other = lines(stream)
    assert (own["workflow_id"], own["step"], own["attempt"]) == ("wf-5", "charge", 2)
    assert own["span_id"] == trace_context.attempt_span_id(5, "charge", 2).hex()
    assert other["trace_id"] == trace_context.trace_id(6).hex()
    assert "span_id" not in other


def test_the_level_changes_while_it_logs(stream: io.StringIO) -> None:
    log = logs.get("knhk.test")
    logs.set_level("ERROR")
    log.info("unheard")
    assert logs.level() == "error"
    logs.set_level("debug")
    log.debug("heard")
    with pytest.raises(ValueError):
        logs.set_level("chatty")
    assert [line["event"] for line in lines(stream)] == ["heard"]


def test_a_keeper_gets_json_even_from_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_is_terminal", lambda _stream: True)
    kept: list[str] = []
    target = io.StringIO()
    logs.configure("info", target)
    logs.keep(kept.append)
    try:
        logs.get("knhk.test").info("ready", password="hidden")
        logs.flush()
    finally:
        logs.keep_no_more(kept.append)
        logs.configure("warning")
    assert json.loads(kept[0])["password"] == logs.MASK
    assert not target.getvalue().startswith("{")
