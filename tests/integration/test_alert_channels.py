"""Alert channels against local receivers that check the providers' formats."""

import asyncio
import hashlib
import hmac
import json
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from knhk.monitoring import channels
from knhk.monitoring.delivery import EmailChannel, HttpChannel, HttpClient, MailServer, NotTold, try_out
from knhk.monitoring.incidents import Audience, Incident
from knhk.platform.clock import SystemClock
from tests.acceptance.server import free_port
from tests.services.alert_receivers import HttpReceiver, MailReceiver, check_pagerduty, check_slack

NODE = "node-1"
AT = 1_800_000_000_000_000_000


def incident(name: str = "slo.success", **changes: Any) -> Incident:
    given = {"severity": "critical", "summary": "Workflows fail: <5 %> & more", "details": {"burn_rate": "14.4"}}
    return Incident(name=name, started_at_ns=AT, node=NODE, **(given | changes))  # type: ignore[arg-type]


def over(name: str = "slo.success") -> Incident:
    return incident(name, resolved_at_ns=AT + 60 * 10**9)


@pytest.fixture
async def client() -> Any:
    made = HttpClient()
    yield made
    await made.aclose()


@pytest.fixture
def pagerduty() -> Iterator[HttpReceiver]:
    made = HttpReceiver(check_pagerduty)
    yield made
    made.close()


@pytest.fixture
def slack() -> Iterator[HttpReceiver]:
    made = HttpReceiver(check_slack)
    yield made
    made.close()


@pytest.fixture
def hook() -> Iterator[HttpReceiver]:
    made = HttpReceiver()
    yield made
    made.close()


@pytest.fixture
def mail() -> Iterator[MailReceiver]:
    made = MailReceiver(free_port())
    yield made
    made.close()


def pagerduty_channel(url: str, client: HttpClient) -> HttpChannel:
    return HttpChannel(
        Audience("pagerduty"),
        "pagerduty",
        lambda fires, gone: [
            *(channels.pagerduty(url, "key-1", one, over=False) for one in fires),
            *(channels.pagerduty(url, "key-1", one, over=True) for one in gone),
        ],
        client.get,
    )


def slack_channel(url: str, client: HttpClient) -> HttpChannel:
    return HttpChannel(
        Audience("slack"), "slack", lambda fires, gone: [channels.slack(url, NODE, fires, gone)], client.get
    )


async def test_pagerduty_gets_a_trigger_and_the_resolve_of_the_same_key(
    pagerduty: HttpReceiver, client: HttpClient
) -> None:
    channel = pagerduty_channel(pagerduty.url, client)
    await channel.tell([incident(), incident("x" * 300)], [])
    await channel.tell([], [over(), incident("x" * 300, resolved_at_ns=AT + 1)])
    first, second, third, fourth = pagerduty.bodies
    assert [one["event_action"] for one in pagerduty.bodies] == ["trigger", "trigger", "resolve", "resolve"]
    assert first["dedup_key"] == third["dedup_key"] == f"knhk/{NODE}/slo.success/{AT}"
    assert second["dedup_key"] == fourth["dedup_key"] != first["dedup_key"]
    assert first["routing_key"] == "key-1"
    assert first["payload"]["severity"] == "critical"
    assert first["payload"]["custom_details"] == {"burn_rate": "14.4"}
    assert pagerduty.refused == []


async def test_slack_gets_one_message_for_all(slack: HttpReceiver, client: HttpClient) -> None:
    channel = slack_channel(slack.url, client)
    await channel.tell([incident(), incident("health.persistence")], [over("slo.latency")])
    await channel.tell([incident(summary="long " * 2_000)], [])
    await channel.tell([incident(f"n{number}") for number in range(100)], [])
    assert slack.refused == []
    first, _, many = slack.bodies
    assert first["text"] == "2 firing, 1 resolved"
    assert "&lt;5 %&gt; &amp; more" in first["blocks"][1]["text"]["text"]
    assert "resolved" in first["blocks"][3]["text"]["text"]
    assert "60 more" in many["blocks"][-1]["elements"][0]["text"]


async def test_a_webhook_can_check_who_sent_it(hook: HttpReceiver, client: HttpClient) -> None:
    channel = HttpChannel(
        Audience("webhook"),
        "webhook",
        lambda fires, gone: [channels.webhook(hook.url, "shared", NODE, fires, gone)],
        client.get,
    )
    await channel.tell([incident()], [over("slo.latency")])
    expected = hmac.new(b"shared", hook.raw[0], hashlib.sha256).hexdigest()
    assert hook.headers[0]["x-knhk-signature"] == f"sha256={expected}"
    fires, gone = hook.bodies[0]["alerts"]
    assert (fires["status"], fires["name"], fires["resolved_at"]) == ("firing", "slo.success", None)
    assert (gone["status"], gone["resolved_at"]) == ("resolved", "2027-01-15T08:01:00.000Z")
    assert hook.bodies[0]["node"] == NODE


async def test_mail_goes_to_all_and_its_resolve_is_a_reply(mail: MailReceiver) -> None:
    server = MailServer("127.0.0.1", mail.port, "auto", "", "")
    to = ("ops-team@company.com", "boss@company.com")
    channel = EmailChannel(Audience("email"), server, "knhk@node-1", to, NODE, SystemClock())
    await channel.tell([incident(summary="Wörkflows\nfail")], [])
    await channel.tell([], [over()])
    first, reply = mail.messages
    assert mail.to == [list(to)] * 2
    assert first["Subject"] == "[KNHK node-1] CRITICAL: Wörkflows fail"
    assert first["Auto-Submitted"] == "auto-generated"
    assert first["To"] == "ops-team@company.com, boss@company.com"
    assert first["Date"]
    assert "burn_rate: 14.4" in first.get_content()
    assert reply["In-Reply-To"] == first["Message-ID"] != reply["Message-ID"]
    assert "RESOLVED at 2027-01-15" in reply.get_content()


@pytest.mark.parametrize("status", [400, 404, 429, 500])
async def test_what_a_channel_answers_is_told_without_its_secret(
    slack: HttpReceiver, client: HttpClient, status: int
) -> None:
    slack.status, slack.more = status, {"retry-after": "7"}
    with pytest.raises(NotTold) as caught:
        await slack_channel(slack.url, client).tell([incident()], [])
    assert str(caught.value) == f"HTTP {status}: ok"
    assert caught.value.after_ns == 7 * 10**9


async def test_nobody_there(client: HttpClient) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}/services/secret-part"
    with pytest.raises(NotTold) as caught:
        await slack_channel(nowhere, client).tell([incident()], [])
    assert "secret-part" not in str(caught.value)
    server = MailServer("127.0.0.1", free_port(), "auto", "", "")
    with pytest.raises(NotTold, match="ConnectionRefusedError"):
        await EmailChannel(Audience("email"), server, "a@b", ("c@d",), NODE, SystemClock()).tell([incident()], [])


async def test_a_mail_server_that_hangs_holds_nobody_up() -> None:
    listener = socket.create_server(("127.0.0.1", 0))  # takes connections and says nothing
    port = listener.getsockname()[1]
    channel = EmailChannel(
        Audience("email"), MailServer("127.0.0.1", port, "auto", "", ""), "a@b", ("c@d",), NODE, SystemClock()
    )
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await channel.tell([incident()], [])
    assert time.monotonic() - began < 5
    listener.close()


async def test_a_test_alert_begins_and_ends(pagerduty: HttpReceiver, client: HttpClient) -> None:
    channel = pagerduty_channel(pagerduty.url, client)
    assert await try_out(channel, NODE, AT) == ""
    assert [one["event_action"] for one in pagerduty.bodies] == ["trigger", "resolve"]
    assert "test" in json.dumps(pagerduty.bodies[0])
    pagerduty.status = 401
    assert await try_out(channel, NODE, AT) == "HTTP 401: ok"


@pytest.fixture
def self_signed(tmp_path: Path) -> ssl.SSLContext:
    """A certificate that nobody vouches for, as mail servers have it after their installation."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "server.pem"
    file.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + certificate.public_bytes(Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


async def test_tls_is_taken_if_offered_and_a_password_goes_to_nobody_unknown(self_signed: ssl.SSLContext) -> None:
    mail = MailReceiver(free_port(), self_signed)

    def channel(security: Any, username: str = "") -> EmailChannel:
        server = MailServer("127.0.0.1", mail.port, security, username, "right" if username else "")
        return EmailChannel(Audience("email"), server, "a@b", ("c@d",), NODE, SystemClock())

    try:
        await channel("auto").tell([incident()], [])
        assert len(mail.messages) == 1
        for careful in (channel("starttls"), channel("auto", "knhk")):
            with pytest.raises(NotTold, match="CERTIFICATE_VERIFY_FAILED"):
                await careful.tell([incident()], [])
        with pytest.raises(NotTold, match="STARTTLS"):
            await channel("none").tell([incident()], [])
        assert (len(mail.messages), mail.logins) == (1, [])
    finally:
        mail.close()
