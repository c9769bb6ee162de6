"""`notify`: tell people, by e-mail, chat, SMS or any other service that Apprise knows. Off until channels are named.

A message is sent again if the process dies between sending it and its receipt: at least once. The URLs of channels hold
credentials, so messages of failures show none of their parts.
"""

import re
from typing import Annotated, Any, Final, Literal

import msgspec

from knhk.actions.parameters import NOT_ALLOWED_CODE, parse
from knhk.actions.registry import Action, Failed, Invocation, Outcome, RetryLater, Succeeded
from knhk.actions.schema import schema_of
from knhk.config.actions_section import NotifyChannel, NotifyOptions
from knhk.domain.plan import ActionTraits
from knhk.domain.units import SECOND

NAME: Final = "notify"
CHANNEL_CODE: Final = "KNHK-NOTIFY-CHANNEL"
SEND_CODE: Final = "KNHK-NOTIFY-SEND"
_SECRET_PART: Final = re.compile(r"[^/:@?&=#,+%]{4,}")
Text = Annotated[str, msgspec.Meta(max_length=65_536)]


class NotifyParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The message, and the channels that it goes to."""

    channel: str | list[str]
    body: Text
    title: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    type: Literal["info", "success", "warning", "failure"] = "info"
    format: Literal["text", "markdown", "html"] = "text"


class Channels:
    """The channels of this process."""

    def __init__(self, options: NotifyOptions) -> None:
        self._options = options
        self._channels = {one.name: one for one in options.channels}

    def run(self, invocation: Invocation) -> Outcome:
        """Sends the message to every channel; all of them again if one does not take it."""
        params = parse(invocation, NAME, NotifyParams)
        if isinstance(params, Failed):
            return params
        names = [params.channel] if isinstance(params.channel, str) else list(dict.fromkeys(params.channel))
        unknown = [name for name in names if name not in self._channels]
        if unknown or not names:
            known = ", ".join(self._channels) or "none"
            asked = unknown[0][:100] if unknown else ""
            return Failed(NOT_ALLOWED_CODE, f"notify: {asked!r} is no channel of `actions.notify.channels`: {known}")
        try:
            import apprise
        except ModuleNotFoundError:
            return Failed(CHANNEL_CODE, "notify: the package apprise is not installed: pip install 'knhk[notify]'")
        for name in names:
            outcome = _sent(apprise, self._channels[name], params, self._options.timeout_ns / SECOND)
            if outcome is not None:
                return outcome
        return Succeeded({"sent_to": names})


def _sent(apprise: Any, channel: NotifyChannel, params: NotifyParams, timeout_s: float) -> Outcome | None:
    """None if the channel took the message. Nothing is kept on disk, and no plugin but Apprise's own is loaded."""
    url = channel.url.get_secret_value()
    asset = apprise.AppriseAsset(
        app_id="KNHK", app_desc="KNHK", plugin_paths=[], storage_mode=apprise.PersistentStoreMode.MEMORY
    )
    service = apprise.Apprise(asset=asset)
    if not service.add(url):
        return Failed(CHANNEL_CODE, f"notify: the URL of channel {channel.name!r} is none that Apprise knows")
    result = service.notify(
        params.body, params.title, notify_type=params.type, body_format=params.format, timeout=timeout_s
    )
    if result:
        return None
    reasons = [str(entry.message) for entry in result.logs()]
    reason = _without_secrets(reasons[-1], url) if reasons else "it says no reason"
    return RetryLater(SEND_CODE, f"notify: channel {channel.name!r} did not take the message: {reason}"[:300])


def _without_secrets(text: str, url: str) -> str:
    for part in sorted(_SECRET_PART.findall(url), key=len, reverse=True):
        text = text.replace(part, "***")
    return " ".join(text.split())


def action(options: NotifyOptions) -> Action:
    """The action with these channels."""
    disabled = "" if options.channels else "`actions.notify.channels` names no channel"
    traits = ActionTraits(
        NAME, pure=False, params_schema=schema_of(NotifyParams), reads_dependencies=False, disabled=disabled
    )
    return Action(traits, "thread", Channels(options).run, __name__, about="tells people, by mail, chat and the like")
