"""The whole configuration: one frozen section for each room."""

from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from knhk.config.actions_section import Actions
from knhk.config.cluster_section import Cluster
from knhk.config.diagnostics_section import Diagnostics
from knhk.config.later_sections import Audit, Auth, CostTracking, Learning, Tls
from knhk.config.monitoring_section import Monitoring
from knhk.config.recovery_section import Recovery
from knhk.config.scaling_section import Scaling
from knhk.config.sections import Api, Observability, Persistence, Platform
from knhk.config.values import Section
from knhk.config.workers_section import Workers


class Config(Section):
    """Every setting of a KNHK server; `Config()` is the default one. Sections are in the order of the documentation."""

    platform: Platform = Field(default_factory=Platform)
    persistence: Persistence = Field(default_factory=Persistence)
    observability: Observability = Field(default_factory=Observability)
    api: Api = Field(default_factory=Api)
    actions: Actions = Field(default_factory=Actions)
    workers: Workers = Field(default_factory=Workers)
    # Validated even if it is the default, so that checkpoints and diagnostics follow `persistence.path`.
    recovery: Recovery = Field(default_factory=Recovery, validate_default=True)
    diagnostics: Diagnostics = Field(default_factory=Diagnostics, validate_default=True)
    monitoring: Monitoring = Field(default_factory=Monitoring)
    scaling: Scaling = Field(default_factory=Scaling)
    learning: Learning = Field(default_factory=Learning)
    cost_tracking: CostTracking = Field(default_factory=CostTracking)
    auth: Auth = Field(default_factory=Auth)
    audit: Audit = Field(default_factory=Audit)
    tls: Tls = Field(default_factory=Tls)
    cluster: Cluster = Field(default_factory=Cluster)

    @field_validator("recovery")
    @classmethod
    def _checkpoints_beside_data(cls, recovery: Recovery, info: ValidationInfo) -> Recovery:
        persistence = info.data.get("persistence")
        if "checkpoint_path" in recovery.model_fields_set or not isinstance(persistence, Persistence):
            return recovery
        beside: Path = persistence.path.parent / "checkpoints"
        return recovery.model_copy(update={"checkpoint_path": beside})

    @field_validator("diagnostics")
    @classmethod
    def _diagnostics_beside_data(cls, diagnostics: Diagnostics, info: ValidationInfo) -> Diagnostics:
        persistence = info.data.get("persistence")
        if "path" in diagnostics.model_fields_set or not isinstance(persistence, Persistence):
            return diagnostics
        return diagnostics.model_copy(update={"path": persistence.path.parent / "diagnostics"})

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        scaling, api, ops = self.scaling, self.api, self.observability
        if scaling.min_replicas > scaling.max_replicas:
            raise _contradiction(
                "scaling.min_replicas",
                f"{scaling.min_replicas} is more than scaling.max_replicas, which is {scaling.max_replicas}",
            )
        if api.port and (api.host, api.port) == (ops.metrics_host, ops.metrics_port):
            raise _contradiction("api.port", f"{api.port} is observability.metrics_port too; they need different ports")
        return self


def _contradiction(key: str, message: str) -> PydanticCustomError:
    # The key travels along so that the loader can point at its line; pydantic itself only knows the whole model.
    return PydanticCustomError("contradiction", "{message}", {"key": key, "message": message})
