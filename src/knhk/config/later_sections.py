"""Sections that are read and checked, so that one file serves every version, but that this version does not act on.

`absent.py` says so to the operator who sets them. When a part is built, its section moves to `sections.py`.
"""

from typing import Literal

from pydantic import Field, SecretStr

from knhk.config.values import Location, Section

AuditEvent = Literal["workflow_submit", "workflow_delete", "config_change", "user_login", "api_access"]


class Learning(Section):
    """Tuning from what has run."""

    enable_auto_optimization: bool = Field(default=False, description="Apply what was learned without being asked.")
    pattern_window_size: int = Field(default=1000, ge=1, description="Workflows that are looked at together.")
    confidence_threshold: float = Field(
        default=0.8, ge=0, le=1, description="Confidence from which a finding is applied, from 0 to 1."
    )


class CostTracking(Section):
    """What workflows cost."""

    pricing_model: str = Field(default="aws", min_length=1, description="Price list to count with.")
    budget_limit: float = Field(default=0.0, ge=0, description="Budget a month; 0 sets none.")
    alert_threshold: float = Field(
        default=0.75, ge=0, le=1, description="Share of the budget from which an alert is sent."
    )


class Auth(Section):
    """Who may use the API."""

    provider: Literal["none", "oauth2"] = Field(default="none", description="How callers prove who they are.")
    issuer: str = Field(default="", description="URL of the OAuth2 issuer.")
    client_id: str = Field(default="", description="This server's name at the issuer.")
    client_secret: SecretStr = Field(default=SecretStr(""), description="This server's secret at the issuer.")
    redirect_url: str = Field(default="", description="URL to which the issuer sends users back.")


class Audit(Section):
    """The log of who did what."""

    enabled: bool = Field(default=False, description="Write the audit log.")
    log_path: Location | None = Field(default=None, description="File of the audit log.")
    events: tuple[AuditEvent, ...] = Field(
        default=("workflow_submit", "workflow_delete", "config_change", "user_login", "api_access"),
        description="Events that are written.",
    )


class Tls(Section):
    """Encryption of connections."""

    enabled: bool = Field(default=False, description="Serve HTTPS instead of HTTP.")
    cert: Location | None = Field(default=None, description="File of the certificate, PEM.")
    key: Location | None = Field(default=None, description="File of the certificate's private key, PEM.")
