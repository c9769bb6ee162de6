"""The production guide's configuration is taken literally: its file, its auth and audit blocks, its variables."""

import re
from pathlib import Path

from knhk.config import absent_sections, load
from knhk.domain.units import MB, MINUTE, SECOND

FILE = """\
# /etc/knhk/config.yaml
platform:
  max_concurrent_workflows: 10000
  workflow_timeout: 300s
  enable_auto_scaling: true
  enable_learning: true
  enable_cost_tracking: true

persistence:
  path: /var/lib/knhk/data
  compression: true
  encryption: false
  retention_days: 90

observability:
  endpoint: http://otel-collector:4317
  sampling_rate: 1.0
  export_interval: 10s

monitoring:
  sla_target: 99.99
  alert_channels:
    - type: pagerduty
      service_key: ${PAGERDUTY_KEY}
    - type: slack
      webhook_url: ${SLACK_WEBHOOK}
    - type: email
      addresses:
        - ops-team@company.com

scaling:
  min_replicas: 3
  max_replicas: 100
  target_cpu: 70
  target_memory: 70
  scale_up_cooldown: 5m
  scale_down_cooldown: 10m

learning:
  enable_auto_optimization: true
  pattern_window_size: 1000
  confidence_threshold: 0.8

cost_tracking:
  pricing_model: aws
  budget_limit: 100000
  alert_threshold: 0.75

recovery:
  snapshot_interval: 5m
  max_snapshots: 10
  checkpoint_path: /var/lib/knhk/checkpoints
"""
AUTH = """\
auth:
  provider: oauth2
  issuer: https://auth.company.com
  client_id: knhk-prod
  client_secret: ${OAUTH_SECRET}
  redirect_url: https://knhk.company.com/callback
"""
AUDIT = """\
audit:
  enabled: true
  log_path: /var/log/knhk/audit.log
  events:
    - workflow_submit
    - workflow_delete
    - config_change
    - user_login
    - api_access
"""
ROCKSDB = """\
# rocksdb.yaml
write_buffer_size: 64MB
max_write_buffer_number: 3
target_file_size_base: 64MB
max_background_jobs: 8
compression: lz4
block_cache_size: 1GB
bloom_filter_bits: 10
"""
SECRETS = {
    "PAGERDUTY_KEY": "your-key-here",
    "SLACK_WEBHOOK": "https://hooks.slack.com/...",
    "OAUTH_SECRET": "oauth-secret",
    "HOME": "/home/ada",
}
VARIABLES = {
    "KNHK_NODE_ID": "knhk-prod-1",
    "KNHK_CLUSTER_MODE": "true",
    "KNHK_LOG_LEVEL": "info",
    "KNHK_PERSISTENCE_PATH": "/var/lib/knhk/data",
    "KNHK_PERSISTENCE_COMPRESSION": "true",
    "KNHK_TELEMETRY_ENDPOINT": "http://otel-collector:4317",
    "KNHK_METRICS_PORT": "9090",
    "KNHK_SLA_TARGET": "99.99",
    "KNHK_MIN_REPLICAS": "3",
    "KNHK_MAX_REPLICAS": "100",
    "KNHK_TLS_ENABLED": "true",
    "KNHK_TLS_CERT": "/etc/knhk/tls.crt",
    "KNHK_TLS_KEY": "/etc/knhk/tls.key",
    "KNHK_AUTH_PROVIDER": "oauth2",
}


def test_the_whole_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(FILE + AUTH + AUDIT)
    config = load(file, SECRETS, {}).config

    assert config.platform.max_concurrent_workflows == 10_000
    assert config.platform.workflow_timeout_ns == 300 * SECOND
    assert config.platform.enable_learning
    assert config.persistence.path == Path("/var/lib/knhk/data")
    assert config.persistence.key_path == Path("/var/lib/knhk/keys")
    assert config.persistence.compression
    assert config.observability.endpoint == "http://otel-collector:4317"
    assert config.observability.export_interval_ns == 10 * SECOND
    pagerduty, slack, email = config.monitoring.alert_channels
    assert pagerduty.service_key is not None
    assert pagerduty.service_key.get_secret_value() == "your-key-here"
    assert slack.webhook_url is not None
    assert slack.webhook_url.get_secret_value() == "https://hooks.slack.com/..."
    assert email.addresses == ("ops-team@company.com",)
    assert config.scaling.scale_down_cooldown_ns == 10 * MINUTE
    assert config.learning.confidence_threshold == 0.8
    assert config.cost_tracking.budget_limit == 100_000
    assert config.recovery.checkpoint_path == Path("/var/lib/knhk/checkpoints")
    assert config.auth.provider == "oauth2"
    assert config.auth.client_secret.get_secret_value() == "oauth-secret"
    assert config.audit.events[-1] == "api_access"


def test_every_variable_is_read() -> None:
    loaded = load(None, VARIABLES, {}, default_path=Path("/nonexistent"))
    config = loaded.config

    assert config.platform.node_id == "knhk-prod-1"
    assert config.cluster.mode
    assert config.platform.log_level == "info"
    assert config.persistence.path == Path("/var/lib/knhk/data")
    assert config.observability.endpoint == "http://otel-collector:4317"
    assert config.observability.metrics_port == 9090
    assert config.monitoring.sla_target == 99.99
    assert (config.scaling.min_replicas, config.scaling.max_replicas) == (3, 100)
    assert config.tls.enabled
    assert (config.tls.cert, config.tls.key) == (Path("/etc/knhk/tls.crt"), Path("/etc/knhk/tls.key"))
    assert config.auth.provider == "oauth2"
    named = {source.removeprefix("env:") for source in loaded.sources.values() if source.startswith("env:")}
    assert named == set(VARIABLES)
    assert not loaded.warnings


def test_the_rocksdb_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "rocksdb.yaml").write_text(ROCKSDB)
    file = tmp_path / "config.yaml"
    file.write_text("persistence:\n  rocksdb: rocksdb.yaml\n")
    loaded = load(file, {}, {})
    options = loaded.config.persistence.rocksdb
    assert options.write_buffer_size_bytes == 64 * MB
    assert options.max_background_jobs == 8
    assert options.block_cache_size_bytes == 1024 * MB
    assert loaded.sources["persistence.rocksdb.block_cache_size"] == f"file:{tmp_path / 'rocksdb.yaml'}:7"


def test_what_the_guide_asks_for_in_vain_is_said(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(FILE + AUTH + AUDIT)
    said = absent_sections(load(file, {**SECRETS, **VARIABLES}, {}))
    first_words = {re.split(r"[, ]", sentence)[0] for sentence in said}
    assert first_words == {
        "platform.enable_learning",
        "platform.enable_cost_tracking",
        "auth",
        "audit",
        "tls",
    }
