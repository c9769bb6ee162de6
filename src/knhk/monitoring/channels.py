"""How each kind of channel wants to be told: the bodies of PagerDuty, Slack, e-mail and webhook; pure.

PagerDuty: Events API v2. Slack: incoming webhooks with Block Kit. E-mail: RFC 5322. Webhook: this file is the format.
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from email.message import EmailMessage
from typing import Any, Final, NamedTuple

import msgspec

from knhk.domain.times import rfc3339
from knhk.monitoring.incidents import Incident

PAGERDUTY_URL: Final = "https://events.pagerduty.com/v2/enqueue"
SIGNATURE: Final = "x-knhk-signature"
_CLIENT: Final = "KNHK"
_SUMMARY: Final = 1_024  # of PagerDuty
_KEY: Final = 255
_HEADER: Final = 150  # of Slack
_SECTION: Final = 3_000
_MOST_SECTIONS: Final = 40
_COLOURS: Final = {"critical": "🔴", "warning": "🟠", "info": "🔵"}
_SHORT: Final = 200


class Request(NamedTuple):
    """An HTTP POST."""

    url: str
    body: bytes
    headers: Mapping[str, str]


def deduplication_key(incident: Incident) -> str:
    """What binds the messages about one incident together: the same on every attempt, and when the node has another
    name after a restart."""
    key = f"knhk/{incident.node}/{incident.id}"
    return key if len(key) <= _KEY else f"knhk/{hashlib.sha256(key.encode()).hexdigest()}"


def pagerduty(url: str, routing_key: str, incident: Incident, *, over: bool) -> Request:
    """One event: a trigger, or the resolve of the same deduplication key."""
    event: dict[str, Any] = {
        "routing_key": routing_key,
        "event_action": "resolve" if over else "trigger",
        "dedup_key": deduplication_key(incident),
    }
    if not over:
        event["client"] = _CLIENT
        event["payload"] = {
            "summary": incident.summary[:_SUMMARY],
            "source": incident.node,
            "severity": incident.severity,
            "timestamp": rfc3339(incident.started_at_ns),
            "component": "knhk",
            "class": incident.name,
            "custom_details": incident.details,
        }
    return Request(url, msgspec.json.encode(event), {"content-type": "application/json"})


def slack(url: str, node: str, fires: Sequence[Incident], over: Sequence[Incident]) -> Request:
    """One message for all: a header, a section for each incident, and where it comes from."""
    title = headline(fires, over)
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": title[:_HEADER], "emoji": True}}
    ]
    parts = [_slack_section(one, over=False) for one in fires] + [_slack_section(one, over=True) for one in over]
    blocks += [{"type": "section", "text": {"type": "mrkdwn", "text": text}} for text in parts[:_MOST_SECTIONS]]
    left = len(parts) - _MOST_SECTIONS
    footer = f"node `{_escaped(node)}`" + (f", and {left} more" if left > 0 else "")
    blocks.append({"type": "context", "elements": [{"type": "mrkdwn", "text": footer}]})
    body = {"text": title, "blocks": blocks}
    return Request(url, msgspec.json.encode(body), {"content-type": "application/json; charset=utf-8"})


def _slack_section(incident: Incident, *, over: bool) -> str:
    mark = "✅ resolved" if over else f"{_COLOURS[incident.severity]} {incident.severity}"
    lines = [f"*{mark}: {_escaped(incident.summary)}*", f"`{_escaped(incident.name)}`, since {_since(incident)}"]
    if not over:
        lines += [f"• {_escaped(key)}: {_escaped(value)}" for key, value in incident.details.items()]
    return "\n".join(lines)[:_SECTION]


def _escaped(text: str) -> str:
    """The three characters that Slack gives a meaning."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def webhook(url: str, secret: str, node: str, fires: Sequence[Incident], over: Sequence[Incident]) -> Request:
    """One body for all incidents. With a secret, `x-knhk-signature` is `sha256=` and the HMAC-SHA-256 of the body."""
    alerts = [_alert(one, "firing") for one in fires] + [_alert(one, "resolved") for one in over]
    body = msgspec.json.encode({"version": 1, "node": node, "alerts": alerts})
    headers = {"content-type": "application/json"}
    if secret:
        headers[SIGNATURE] = f"sha256={hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}"
    return Request(url, body, headers)


def _alert(incident: Incident, status: str) -> dict[str, Any]:
    return {
        "status": status,
        "name": incident.name,
        "severity": incident.severity,
        "summary": incident.summary,
        "details": incident.details,
        "dedup_key": deduplication_key(incident),
        "started_at": rfc3339(incident.started_at_ns),
        "resolved_at": rfc3339(incident.resolved_at_ns) if incident.resolved_at_ns else None,
    }


def email(
    sender: str, addresses: Sequence[str], node: str, fires: Sequence[Incident], over: Sequence[Incident], at: str
) -> EmailMessage:
    """One message for all; what resolves an incident is a reply to what told of it. `at` is its date, RFC 5322."""
    message = EmailMessage()
    message["From"] = sender
    message["To"] = ", ".join(addresses)
    message["Subject"] = _one_line(f"[KNHK {node}] {headline(fires, over)}")
    message["Date"] = at
    first = (*fires, *over)[0]
    message["Message-ID"] = _message_id(first, over=not fires)
    if not fires:
        message["In-Reply-To"] = message["References"] = _message_id(first, over=False)
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody's out-of-office answers
    texts = [_paragraph(one, over=False) for one in fires] + [_paragraph(one, over=True) for one in over]
    message.set_content("\n\n".join([*texts, f"node: {node}"]) + "\n")
    return message


def _message_id(incident: Incident, *, over: bool) -> str:
    digest = hashlib.sha256(deduplication_key(incident).encode()).hexdigest()[:32]
    return f"<{digest}.{'resolved' if over else 'firing'}@knhk.invalid>"


def _paragraph(incident: Incident, *, over: bool) -> str:
    state = f"RESOLVED at {rfc3339(incident.resolved_at_ns)}" if over else incident.severity.upper()
    lines = [f"{state}: {incident.summary}", f"  alert: {incident.name}", f"  since: {_since(incident)}"]
    return "\n".join(lines + [f"  {key}: {value}" for key, value in incident.details.items()])


def headline(fires: Sequence[Incident], over: Sequence[Incident]) -> str:
    """All of it in a line."""
    if len(fires) + len(over) == 1:
        (only,) = (*fires, *over)
        return f"{'RESOLVED' if over else only.severity.upper()}: {_one_line(only.summary)[:_SHORT]}"
    return ", ".join(f"{len(some)} {word}" for some, word in ((fires, "firing"), (over, "resolved")) if some)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _since(incident: Incident) -> str:
    return rfc3339(incident.started_at_ns)
