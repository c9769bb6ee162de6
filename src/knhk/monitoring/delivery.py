"""Telling the channels: one at a time for each channel, all channels at once, and never in the way of anything else.

A channel that fails is told again later, for as long as the incident lasts. Raises nothing but NotTold.
"""

import asyncio
import smtplib
import ssl
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Final, Literal, NamedTuple, Protocol

import httpx

from knhk.monitoring import channels
from knhk.monitoring.channels import Request
from knhk.monitoring.incidents import Audience, Incident
from knhk.observability.logs import get
from knhk.ports.environment import Clock

_TIMEOUT_S: Final = 10.0
_LONGEST_REASON: Final = 300
_LONGEST_WAIT_S: Final = 3_600.0
_SECOND_NS: Final = 1_000_000_000


class NotTold(Exception):  # it says what happened
    """A channel has not taken a message. `after_s` is how long it asked to be left alone."""

    def __init__(self, reason: str, after_s: float = 0.0) -> None:
        super().__init__(reason[:_LONGEST_REASON])
        self.after_ns = int(min(after_s, _LONGEST_WAIT_S) * _SECOND_NS)


class Channel(Protocol):
    """One receiver of alerts."""

    @property
    def audience(self) -> Audience: ...

    @property
    def kind(self) -> str: ...

    async def tell(self, fires: Sequence[Incident], over: Sequence[Incident]) -> None:
        """Tell of incidents that fire and of some that are over. Raises NotTold; telling again does no harm."""
        ...


class HttpChannel:
    """A channel that is told by HTTP requests, which `requests` makes."""

    def __init__(
        self,
        audience: Audience,
        kind: str,
        requests: Callable[[Sequence[Incident], Sequence[Incident]], list[Request]],
        client: Callable[[], httpx.AsyncClient],
    ) -> None:
        self.audience, self.kind = audience, kind
        self._requests, self._client = requests, client

    async def tell(self, fires: Sequence[Incident], over: Sequence[Incident]) -> None:
        for request in self._requests(fires, over):
            try:
                answer = await self._client().post(request.url, content=request.body, headers=dict(request.headers))
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise NotTold(f"{type(error).__name__}: {_without_url(str(error), request.url)}") from None
            if not answer.is_success:
                text = _without_url(answer.text, request.url)
                raise NotTold(f"HTTP {answer.status_code}: {text}", _retry_after_s(answer))


def _without_url(text: str, url: str) -> str:
    """A text without the address, which for Slack is a secret."""
    return text.replace(url, "the channel's URL")


def _retry_after_s(answer: httpx.Response) -> float:
    given = answer.headers.get("retry-after", "")
    return float(given) if given.isdecimal() else 0.0


class MailServer(NamedTuple):
    """Where e-mail is handed in."""

    host: str
    port: int
    security: Literal["auto", "starttls", "tls", "none"]
    username: str
    password: str


class EmailChannel:
    """A channel that is told by e-mail."""

    kind = "email"

    def __init__(
        self, audience: Audience, server: MailServer, sender: str, to: Sequence[str], node: str, clock: Clock
    ) -> None:
        self.audience = audience
        self._server, self._sender, self._to, self._node, self._clock = server, sender, to, node, clock

    async def tell(self, fires: Sequence[Incident], over: Sequence[Incident]) -> None:
        at = format_datetime(datetime.fromtimestamp(self._clock.now_ns() // _SECOND_NS, UTC))
        message = channels.email(self._sender, self._to, self._node, fires, over, at)
        try:
            await _in_a_thread(lambda: self._send(message))
        except (smtplib.SMTPException, OSError) as error:
            raise NotTold(f"{self._server.host}:{self._server.port}: {type(error).__name__}: {error}") from None

    def _send(self, message: EmailMessage) -> None:
        server = self._server
        context = _context(server)
        if server.security == "tls":
            session: smtplib.SMTP = smtplib.SMTP_SSL(server.host, server.port, timeout=_TIMEOUT_S, context=context)
        else:
            session = smtplib.SMTP(server.host, server.port, timeout=_TIMEOUT_S)
        with session:
            session.ehlo()
            offered = session.has_extn("starttls")
            if server.security == "starttls" or (server.security == "auto" and offered):
                session.starttls(context=context)
            if server.username:
                session.login(server.username, server.password)
            session.send_message(message)


def _context(server: MailServer) -> ssl.SSLContext:
    """Certificates are checked, but where TLS is taken only because it is offered, and no password goes over it: there
    it is better than nothing, as for mail servers among each other (opportunistic TLS, RFC 7435)."""
    context = ssl.create_default_context()
    if server.security == "auto" and not server.username:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def _in_a_thread(work: Callable[[], None]) -> None:
    """Run what blocks in a daemon thread, which cannot hold up the end of the process."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish(error: BaseException | None) -> None:
        if not done.done():
            done.set_result(None) if error is None else done.set_exception(error)

    def run() -> None:
        failed: BaseException | None = None
        try:
            work()
        except Exception as error:
            failed = error
        try:
            loop.call_soon_threadsafe(finish, failed)
        except RuntimeError:
            return  # the loop was closed; nobody waits any more

    threading.Thread(target=run, name="knhk-mail", daemon=True).start()
    await done


class HttpClient:
    """The HTTP client of all channels, made when it is first needed."""

    def __init__(self) -> None:
        self._client: httpx.AsyncClient | None = None

    def get(self) -> httpx.AsyncClient:
        """The client."""
        if self._client is None:
            self._client = httpx.AsyncClient(timeout=_TIMEOUT_S)
        return self._client

    async def aclose(self) -> None:
        """Close its connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


async def try_out(channel: Channel, node: str, now_ns: int) -> str:
    """Send a test alert and its end; empty if both were taken, or else why not."""
    details = {"node": node, "what": "a test that somebody asked for; nothing is wrong"}
    test = Incident("test", "info", f"KNHK test alert from {node}", details, now_ns, node=node)
    try:
        await channel.tell([test], [])
        test.resolved_at_ns = now_ns
        await channel.tell([], [test])
    except NotTold as error:
        return str(error)
    except Exception as error:  # a fault of ours in the making of a message
        get("knhk.monitoring").exception("a test alert failed", channel=channel.audience.channel)
        return f"{type(error).__name__}: {error}"
    return ""
