"""The service level that is promised, and who hears when it is missed."""

from typing import Annotated, Literal

from pydantic import Field, SecretStr, model_validator

from knhk.config.values import CaseBlind, Duration, Port, Section
from knhk.domain.units import MINUTE, SECOND

Severity = Annotated[Literal["info", "warning", "critical"], CaseBlind]


class AlertChannel(Section):
    """One receiver of alerts: what is needed depends on its type.

    `name` is what it is called in `knhk alerts`, by default its type and, if there are several, a number. `severity` is
    the least severe alert that it gets, `after` for how long an alert must have been firing first (escalation). `url`
    replaces PagerDuty's address, for its European region. `secret` signs the bodies for a webhook.
    """

    type: Literal["pagerduty", "slack", "email", "webhook"]
    name: str = ""
    service_key: SecretStr | None = None
    webhook_url: SecretStr | None = None
    addresses: tuple[str, ...] = ()
    url: str = ""
    secret: SecretStr | None = None
    severity: Severity = "warning"
    after_ns: Duration = 0

    @model_validator(mode="after")
    def _complete(self) -> "AlertChannel":
        needed = {
            "pagerduty": "service_key",
            "slack": "webhook_url",
            "email": "addresses",
            "webhook": "webhook_url",
        }
        key = needed[self.type]
        if not getattr(self, key):
            raise ValueError(f"a channel of type {self.type} needs {key}")
        return self


class Smtp(Section):
    """The mail server that takes alerts by e-mail."""

    host: str = Field(default="localhost", min_length=1, description="The mail server's name.")
    port: Port = Field(default=25, description="The mail server's port; 587 and 465 are usual with a login.")
    security: Literal["auto", "starttls", "tls", "none"] = Field(
        default="auto",
        description="`starttls` insists on it, `tls` begins with it (port 465); `auto` takes it if it is offered, and "
        "checks the certificate only if there is a login.",
    )
    username: str = Field(default="", description="The login, if the mail server wants one.")
    password: SecretStr = Field(default=SecretStr(""), description="The login's password.")
    sender: str = Field(default="", description="Address that alerts come from; `knhk@` this host if empty.")


class Monitoring(Section):
    """The service level and who hears when it is missed."""

    sla_target: float = Field(
        default=99.99, gt=0, le=100, description="Uptime to hold, and the share of workflows to succeed, in percent."
    )
    latency_target_ns: Duration = Field(
        default=1 * SECOND, ge=0, description="Time in which a workflow should have ended; `0s` promises none."
    )
    latency_percent: float = Field(
        default=99.0, gt=0, le=100, description="Share of workflows that should have ended by then, in percent."
    )
    min_failures: int = Field(
        default=5, ge=1, description="Workflows that must have failed, or been slow, in a window before it is an alert."
    )
    min_downtime_ns: Duration = Field(
        default=30 * SECOND, ge=0, description="Down time in a window before it is an alert: a restart is none."
    )
    check_interval_ns: Duration = Field(
        default=10 * SECOND, gt=0, description="Time between two looks at the service level; alerts are grouped by it."
    )
    cooldown_ns: Duration = Field(
        default=5 * MINUTE, ge=0, description="Shortest time between the end of an alert and the same one again."
    )
    resolve_after_ns: Duration = Field(
        default=1 * MINUTE, ge=0, description="How long the cause must be gone before an alert is resolved."
    )
    alert_channels: tuple[AlertChannel, ...] = Field(
        default=(),
        description="Receivers of alerts: `type: pagerduty` with `service_key`, `type: slack` or `type: webhook` with "
        "`webhook_url`, or `type: email` with `addresses`; see [monitoring](monitoring.md).",
    )
    smtp: Smtp = Field(default_factory=Smtp, description="The mail server for channels of type email.")
