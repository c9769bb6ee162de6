"""The `notify` action with a real HTTP and a real SMTP server."""

from collections.abc import Iterator
from typing import Any

import pytest

from knhk.actions.notify import Channels, action
from knhk.actions.registry import Failed, Outcome, RetryLater, Succeeded
from knhk.config.actions_section import NotifyChannel, NotifyOptions
from tests.acceptance.server import free_port
from tests.integration.test_shell_action import invocation
from tests.services.alert_receivers import HttpReceiver, MailReceiver

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated")  # which Apprise imports
SECRET = "sesame-open"


@pytest.fixture
def mail() -> Iterator[MailReceiver]:
    receiver = MailReceiver(free_port())
    yield receiver
    receiver.close()


@pytest.fixture
def web() -> Iterator[HttpReceiver]:
    receiver = HttpReceiver()
    yield receiver
    receiver.close()


@pytest.fixture
def channels(mail: MailReceiver, web: HttpReceiver) -> Channels:
    host = web.url.removeprefix("http://")
    urls = {
        "mail": f"mailto://127.0.0.1:{mail.port}?from=knhk@example.org&to=ops@example.org&mode=insecure",
        "web": f"json://user:{SECRET}@{host}",
        "odd": f"nonsense://{SECRET}",
        "gone": f"json://user:{SECRET}@127.0.0.1:9/x",
    }
    named = tuple(NotifyChannel(name=name, url=url) for name, url in urls.items())
    return Channels(NotifyOptions(channels=named, timeout_ns=20_000_000_000))


def send(channels: Channels, channel: Any, **params: Any) -> Outcome:
    return channels.run(invocation(channel=channel, **params))


def test_messages_arrive(channels: Channels, mail: MailReceiver, web: HttpReceiver) -> None:
    outcome = send(channels, ["mail", "web"], title="Nightly run", body="3 of 4 äöü", type="warning")
    assert outcome == Succeeded({"sent_to": ["mail", "web"]})
    (message,) = mail.messages
    assert (message["subject"], mail.to) == ("Nightly run", [["ops@example.org"]])
    assert "3 of 4 äöü" in message.get_body(("plain", "html")).get_content()  # type: ignore[union-attr]
    (body,) = web.bodies
    assert (body["title"], body["message"], body["type"]) == ("Nightly run", "3 of 4 äöü", "warning")


def test_what_goes_wrong(channels: Channels, web: HttpReceiver) -> None:
    cases: list[tuple[Outcome, type[Outcome], str]] = [
        (send(channels, "other", body="x"), Failed, "KNHK-ACTION-NOT-ALLOWED"),
        (send(channels, [], body="x"), Failed, "KNHK-ACTION-NOT-ALLOWED"),
        (send(channels, "web"), Failed, "KNHK-ACTION-PARAMS"),
        (send(channels, "odd", body="x"), Failed, "KNHK-NOTIFY-CHANNEL"),
        (send(channels, "gone", body="x"), RetryLater, "KNHK-NOTIFY-SEND"),
    ]
    web.status = 500
    cases.append((send(channels, "web", body="x"), RetryLater, "KNHK-NOTIFY-SEND"))
    for outcome, kind, code in cases:
        assert isinstance(outcome, kind), outcome
        assert isinstance(outcome, Failed | RetryLater)
        assert outcome.code == code, outcome
        assert SECRET not in outcome.message
    assert "names no channel" in action(NotifyOptions()).traits.disabled
