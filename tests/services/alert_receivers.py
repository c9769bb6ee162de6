"""PagerDuty, Slack, a webhook and a mail server on loopback: they check what they get as the real ones do."""

import json
import re
import ssl
import threading
from collections.abc import Callable
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def check_pagerduty(event: dict[str, Any]) -> None:
    """Events API v2, as https://developer.pagerduty.com/docs/events-api-v2/trigger-events/ has it."""
    assert event["routing_key"]
    assert event["event_action"] in ("trigger", "resolve")
    assert 0 < len(event["dedup_key"]) <= 255
    if event["event_action"] == "trigger":
        payload = event["payload"]
        assert 0 < len(payload["summary"]) <= 1024
        assert payload["source"]
        assert payload["severity"] in ("critical", "error", "warning", "info")
        assert _RFC3339.fullmatch(payload["timestamp"])
        assert isinstance(payload["custom_details"], dict)
        assert set(payload) <= {
            *("summary", "source", "severity", "timestamp", "component", "group", "class", "custom_details"),
        }


def check_slack(message: dict[str, Any]) -> None:
    """Block Kit, as https://api.slack.com/reference/block-kit/blocks has it."""
    assert message["text"]
    assert 0 < len(message["blocks"]) <= 50
    for block in message["blocks"]:
        match block["type"]:
            case "header":
                assert block["text"]["type"] == "plain_text"
                assert 0 < len(block["text"]["text"]) <= 150
            case "section":
                assert block["text"]["type"] == "mrkdwn"
                assert 0 < len(block["text"]["text"]) <= 3000
            case "context":
                assert 0 < len(block["elements"]) <= 10
            case other:
                raise AssertionError(other)


class HttpReceiver:
    """Keeps the bodies that `check` accepts and answers 202; refuses others with 400. `status` overrides the answer."""

    def __init__(self, check: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.raw: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.refused: list[str] = []
        self.status = 0
        self.more: dict[str, str] = {}
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["content-length"]))
                status = receiver.status
                if not status:
                    try:
                        body = json.loads(raw)
                        assert self.headers["content-type"].startswith("application/json")
                        check(body)
                        receiver.bodies.append(body)
                        receiver.raw.append(raw)
                        receiver.headers.append({name.lower(): value for name, value in self.headers.items()})
                        status = 202
                    except Exception as error:
                        receiver.refused.append(repr(error))
                        status = 400
                self.send_response(status)
                for name, value in receiver.more.items():
                    self.send_header(name, value)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *_given: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/services/T0/B0/secret-part"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class MailReceiver:
    """An SMTP server that keeps the messages it gets, parsed. With a TLS context it wants STARTTLS and a login."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.messages: list[EmailMessage] = []
        self.to: list[list[str]] = []
        self.logins: list[tuple[bytes, bytes]] = []
        more = {} if tls is None else {"tls_context": tls, "require_starttls": True, "authenticator": self._login}
        self._controller = Controller(self, hostname="127.0.0.1", port=port, **more)
        self._controller.start()
        self.port = port

    def _login(self, _server: Any, _session: Any, _envelope: Any, _mechanism: str, given: Any) -> AuthResult:
        self.logins.append((given.login, given.password))
        return AuthResult(success=given.password == b"right")

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        message = BytesParser(policy=default).parsebytes(envelope.content)
        assert isinstance(message, EmailMessage)
        self.messages.append(message)
        self.to.append(list(envelope.rcpt_tos))
        return "250 OK"

    def close(self) -> None:
        self._controller.stop()
