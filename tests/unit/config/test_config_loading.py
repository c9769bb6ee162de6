"""Loading: precedence, sources, `${VAR}`, and that everything wrong is said at once, with its place."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from knhk.config import Config, Loaded, Persistence, absent_sections, load, redacted
from knhk.domain.errors import InvalidConfiguration
from knhk.domain.units import MB, SECOND

NOWHERE = Path("/nonexistent/config.yaml")
HOME = {"HOME": "/home/ada"}


def load_text(
    directory: Path, text: str, environ: Mapping[str, str] = HOME, overrides: Mapping[str, object] | None = None
) -> Loaded:
    file = directory / "config.yaml"
    file.write_text(text)
    return load(file, environ, overrides or {})


def problems_of(directory: Path, text: str, environ: Mapping[str, str] = HOME) -> list[str]:
    with pytest.raises(InvalidConfiguration) as caught:
        load_text(directory, text, environ)
    return [str(problem) for problem in caught.value.problems]


def only_problem(directory: Path, text: str, environ: Mapping[str, str] = HOME) -> str:
    (problem,) = problems_of(directory, text, environ)
    return problem


def test_defaults_suit_a_laptop() -> None:
    loaded = load(None, HOME, {}, default_path=NOWHERE)
    config = loaded.config
    assert config.platform.max_concurrent_workflows == 10_000
    assert config.platform.workflow_timeout_ns == 300 * SECOND
    assert config.platform.tick_ns == 12_500_000
    assert config.platform.node_id
    assert config.persistence.path == Path("/home/ada/.local/share/knhk/data")
    assert config.persistence.key_path == Path("/home/ada/.local/share/knhk/keys")
    assert config.recovery.checkpoint_path == Path("/home/ada/.local/share/knhk/checkpoints")
    assert config.persistence.min_free_bytes == 64 * MB
    assert config.persistence.rocksdb.max_background_jobs == 2
    assert config.persistence.rocksdb.block_cache_size_bytes == 256 * MB
    assert (config.api.host, config.api.port) == ("127.0.0.1", 8080)
    assert config.observability.metrics_port == 9090
    assert set(loaded.sources.values()) == {"default"}
    assert absent_sections(loaded) == []
    assert not loaded.warnings


def test_data_go_to_the_xdg_directory() -> None:
    loaded = load(None, {**HOME, "XDG_DATA_HOME": "/data"}, {}, default_path=NOWHERE)
    assert loaded.config.persistence.path == Path("/data/knhk/data")


def test_a_configuration_can_be_built_in_code(tmp_path: Path) -> None:
    config = Config(persistence=Persistence(path=tmp_path / "data", min_free_bytes=0))
    assert config.persistence.key_path == tmp_path / "keys"
    assert config.recovery.checkpoint_path == tmp_path / "checkpoints"
    with pytest.raises(Exception, match="frozen"):
        config.api.port = 1


def test_later_sources_win(tmp_path: Path) -> None:
    text = "platform:\n  tick: 1ms\n  shutdown_grace: 1s\n  workflow_timeout: 1s\n"
    environ = {**HOME, "KNHK_PLATFORM_SHUTDOWN_GRACE": "2s", "KNHK_PLATFORM_WORKFLOW_TIMEOUT": "2s"}
    loaded = load_text(tmp_path, text, environ, {"platform.workflow_timeout": "3s", "api.port": 1234, "api.host": None})
    platform = loaded.config.platform
    assert (platform.tick_ns, platform.shutdown_grace_ns, platform.workflow_timeout_ns) == (
        SECOND // 1000,
        2 * SECOND,
        3 * SECOND,
    )
    assert loaded.config.api.port == 1234
    assert loaded.sources["platform.tick"] == f"file:{tmp_path / 'config.yaml'}:2"
    assert loaded.sources["platform.shutdown_grace"] == "env:KNHK_PLATFORM_SHUTDOWN_GRACE"
    assert loaded.sources["platform.workflow_timeout"] == "command line"
    assert loaded.sources["api.host"] == "default"


def test_the_file_is_found_by_argument_variable_and_default(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("api: {port: 1}")
    second.write_text("api: {port: 2}")
    named = {**HOME, "KNHK_CONFIG": str(second)}
    assert load(None, HOME, {}, default_path=first).config.api.port == 1
    assert load(None, named, {}, default_path=first).config.api.port == 2
    assert load(first, named, {}).config.api.port == 1
    assert load(first, named, {}).path == first


def test_an_empty_file_and_empty_sections_are_fine(tmp_path: Path) -> None:
    assert load_text(tmp_path, "").config.api.port == 8080
    assert load_text(tmp_path, "api:\n  # port: 1\nplatform:\n").config.api.port == 8080


def test_the_model_decides_how_a_scalar_is_read(tmp_path: Path) -> None:
    text = "platform: {node_id: 0123}\ncost_tracking: {budget_limit: 1e3}\nauth: {client_id: yes}\n"
    config = load_text(tmp_path, text).config
    assert config.platform.node_id == "0123"
    assert config.cost_tracking.budget_limit == 1000.0
    assert config.auth.client_id == "yes"


def test_variables_are_filled_in(tmp_path: Path) -> None:
    text = (
        "api:\n  port: ${PORT}\n  host: ${HOST:-::1}\n"
        "auth:\n  issuer: https://${DOMAIN}/${EMPTY:-x}\n  client_id: $${DOMAIN} $HOME\n"
    )
    config = load_text(tmp_path, text, {**HOME, "PORT": "81", "DOMAIN": "a.b", "EMPTY": ""}).config
    assert (config.api.port, config.api.host) == (81, "::1")
    assert config.auth.issuer == "https://a.b/x"
    assert config.auth.client_id == "${DOMAIN} $HOME"


def test_a_variable_that_is_not_set_is_named_with_its_place(tmp_path: Path) -> None:
    text = "monitoring:\n  alert_channels:\n    - type: pagerduty\n      service_key: ${PAGERDUTY_KEY}\n"
    problem = only_problem(tmp_path, text)
    assert problem.startswith("line 4, column 20: monitoring.alert_channels[0].service_key:")
    assert "PAGERDUTY_KEY is not set" in problem
    assert "${PAGERDUTY_KEY:-default}" in problem


@pytest.mark.parametrize("broken", ["${}", "${A", "${A-B}", "${1A}"])
def test_a_broken_reference_is_refused(tmp_path: Path, broken: str) -> None:
    assert "is not a reference" in only_problem(tmp_path, f"auth: {{client_id: '{broken}'}}")


BAD = """\
platfrom:
  x: 1
platform:
  workflow_timout: 5s
  workflow_timeout: 300
  enable_learning: yes
  log_level: warn
  tick: 5ms
  tick: 6ms
persistence:
  encryption: maybe
  min_free: 64
  compression:
  path: ""
  port: 5
api: 5
monitoring:
  alert_channels: [{type: slack, webhook: x}, 7]
scaling: [1]
actions: {modules: abc, threads: 0, http_timeout: !foo 5s}
"""


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    environ = {**HOME, "KNHK_METRIC_PORT": "3", "KNHK_TLS_ENABLED": "yes"}
    assert problems_of(tmp_path, BAD, environ) == [
        "line 1, column 1: platfrom: unknown section (did you mean 'platform'?)",
        "line 4, column 3: platform.workflow_timout: unknown key (did you mean 'platform.workflow_timeout'?)",
        "line 5, column 21: platform.workflow_timeout: 300 has no unit: write 300s for seconds, or use ms, m, h or d",
        "line 6, column 20: platform.enable_learning: must be true or false, not 'yes'",
        "line 7, column 14: platform.log_level: must be debug, info, warning, error or critical, not 'warn' "
        "(did you mean 'warning'?)",
        "line 9, column 3: platform.tick: stands twice; the first is in line 8",
        "line 11, column 15: persistence.encryption: must be true or false, not 'maybe'",
        "line 12, column 13: persistence.min_free: 64 has no unit: write 64MB, or use B, KB, GB or TB",
        "line 13, column 15: persistence.compression: has no value; give it one, or remove the key",
        "line 14, column 9: persistence.path: a path cannot be empty",
        "line 15, column 3: persistence.port: unknown key (did you mean 'api.port'?)",
        "line 16, column 6: api: must be a mapping of keys to values",
        "line 18, column 34: monitoring.alert_channels[0].webhook: unknown key "
        "(did you mean 'monitoring.alert_channels[0].webhook_url'?)",
        "line 18, column 47: monitoring.alert_channels[1]: must be a mapping, not a single value",
        "line 19, column 10: scaling: must be a mapping, not a list",
        "line 20, column 51: actions.http_timeout: the tag !foo is not supported",
        "line 20, column 20: actions.modules: must be a list of texts, not a single value",
        "line 20, column 34: actions.threads: must be at least 1, not 0",
        "KNHK_METRIC_PORT: unknown environment variable (did you mean 'KNHK_METRICS_PORT'?)",
        "tls.enabled: must be true or false, not 'yes' (from KNHK_TLS_ENABLED)",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "line 2, column 1: not valid YAML"),
        ("api: {port: 1}\n---\napi: {port: 2}", "not valid YAML"),
        ("api: {port: 1}\n\x07", "not valid YAML"),
        ("just words", "must be a mapping"),
        ("- 1", "must be a mapping, not a list"),
        ("api: {<<: {port: 1}}", "merge keys are not supported"),
        ("api: &a {port: 1}\ntls: *a", "tls.port: unknown key (did you mean 'api.port'?)"),
        ("x: &x [*x]", "unknown section"),
        ("api: {port: 65536}", "must be at most 65535, not 65536"),
        ("api: {port: true}", "must be a whole number, not true"),
        ("api: {port: '80'}", "must be a whole number, not '80'"),
        ("api: {port: 9090}", "line 1, column 13: api.port: 9090 is observability.metrics_port too"),
        ("scaling: {min_replicas: 5, max_replicas: 4}", "scaling.min_replicas: 5 is more than scaling.max_replicas"),
        ("cost_tracking: {budget_limit: 1e999}", "must be a number"),
        ("audit: {events: [user_logn]}", "(did you mean 'user_login'?)"),
        ("monitoring: {alert_channels: [{type: slack}]}", "a channel of type slack needs webhook_url"),
        ("monitoring: {alert_channels: [{addresses: [a]}]}", "monitoring.alert_channels[0].type: is missing"),
        ("persistence: {rocksdb: {compresion: lz4}}", "(did you mean 'persistence.rocksdb.compression'?)"),
        ("persistence: {rocksdb: nope.yaml}", "cannot read"),
        ("persistence: {rocksdb: [1]}", "must be a mapping, not a list"),
    ],
)
def test_each_mistake_has_its_message(tmp_path: Path, text: str, message: str) -> None:
    assert any(message in problem for problem in problems_of(tmp_path, text))


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        load(tmp_path / "none.yaml", HOME, {})
    assert "No such file" in str(caught.value.problems[0])
    with pytest.raises(InvalidConfiguration) as caught:
        load(tmp_path, HOME, {})
    assert "Is a directory" in str(caught.value.problems[0])
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"platform: {node_id: caf\xe9}")
    with pytest.raises(InvalidConfiguration) as caught:
        load(latin, HOME, {})
    assert "not UTF-8" in str(caught.value.problems[0])


def test_a_rocksdb_file_that_names_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rocksdb.yaml").write_text("rocksdb.yaml")
    assert "must be a mapping" in only_problem(tmp_path, "persistence: {rocksdb: rocksdb.yaml}")


def test_a_mistake_in_the_rocksdb_file_names_that_file(tmp_path: Path) -> None:
    (tmp_path / "rocksdb.yaml").write_text("\nblock_cache_size: big\n")
    problem = only_problem(tmp_path, "persistence: {rocksdb: rocksdb.yaml}")
    assert problem.startswith("line 2, column 19: persistence.rocksdb.block_cache_size: 'big' is not a size")
    assert problem.endswith(f"(in {tmp_path / 'rocksdb.yaml'})")


def test_rocksdb_options_may_stand_inline_and_in_variables(tmp_path: Path) -> None:
    (tmp_path / "rocksdb.yaml").write_text("compression: zstd\nmax_background_jobs: 4\n")
    environ = {
        **HOME,
        "KNHK_PERSISTENCE_ROCKSDB": str(tmp_path / "rocksdb.yaml"),
        "KNHK_PERSISTENCE_ROCKSDB_COMPRESSION": "snappy",
    }
    text = "persistence: {rocksdb: {bloom_filter_bits: 5, max_background_jobs: 3}}"
    options = load_text(tmp_path, text, environ).config.persistence.rocksdb
    assert (options.bloom_filter_bits, options.max_background_jobs, options.compression) == (5, 4, "snappy")


def test_the_key_that_encrypts_is_a_file_a_variable_or_a_key_of_vault(tmp_path: Path) -> None:
    for source in (
        "",
        "file:/etc/knhk/encryption.key",
        "env:KNHK_KEK",
        "vault:https://vault:8200/v1/transit/keys/knhk",
    ):
        text = f'persistence: {{encryption: true, encryption_key: "{source}"}}'
        assert load_text(tmp_path, text, HOME).config.persistence.encryption_key == source
    for source in ("s3cret", "kms:x", "file:"):
        with pytest.raises(InvalidConfiguration) as caught:
            load_text(tmp_path, f'persistence: {{encryption_key: "{source}"}}', HOME)
        assert "encryption_key" in str(caught.value.problems[0])
        assert "s3cret" not in str(caught.value.problems[0])


def test_lists_come_from_variables_and_overrides() -> None:
    environ = {**HOME, "KNHK_ACTIONS_MODULES": "a.b, c", "KNHK_AUDIT_EVENTS": "[user_login]"}
    channels = '[{type: email, addresses: ["a@b"]}]'
    overrides = {"monitoring.alert_channels": channels}
    config = load(None, environ, overrides, default_path=NOWHERE).config
    assert config.actions.modules == ("a.b", "c")
    assert config.audit.events == ("user_login",)
    assert config.monitoring.alert_channels[0].addresses == ("a@b",)
    assert load(None, HOME, {"actions.modules": ["x"]}, default_path=NOWHERE).config.actions.modules == ("x",)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"api.prt": 1}, "api.prt: unknown key (on the command line) (did you mean 'api.port'?)"),
        ({"platform.tick": 3}, "platform.tick: 3 has no unit"),
        ({"actions.modules": "[a"}, "actions.modules: not valid YAML"),
        ({"persistence.rocksdb": "/nonexistent"}, "cannot read /nonexistent"),
    ],
)
def test_overrides_are_checked_too(overrides: Mapping[str, object], message: str) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        load(None, HOME, overrides, default_path=NOWHERE)
    assert message in str(caught.value.problems[0])


def test_short_and_long_variables_must_agree() -> None:
    same = {**HOME, "KNHK_METRICS_PORT": "91", "KNHK_OBSERVABILITY_METRICS_PORT": "91"}
    loaded = load(None, same, {}, default_path=NOWHERE)
    assert loaded.sources["observability.metrics_port"] == "env:KNHK_METRICS_PORT"
    with pytest.raises(InvalidConfiguration) as caught:
        load(None, {**same, "KNHK_METRICS_PORT": "92"}, {}, default_path=NOWHERE)
    assert "contradict each other" in str(caught.value.problems[0])


def test_other_variables_are_ignored_with_a_warning() -> None:
    environ = {**HOME, "KNHK_UNRELATED": "1", "KNHK_SERVER": "http://x", "KNHK_API_PORT": "", "OTHER": "1"}
    loaded = load(None, environ, {}, default_path=NOWHERE)
    assert loaded.warnings == ("the environment variable KNHK_UNRELATED is not known and is ignored",)
    assert loaded.sources["api.port"] == "default"


def test_kubernetes_service_links_are_not_settings() -> None:
    environ = {
        **HOME,
        "KNHK_SERVICE_HOST": "10.0.0.1",
        "KNHK_SERVICE_PORT": "8080",
        "KNHK_SERVICE_PORT_METRICS": "9090",
        "KNHK_PORT": "tcp://10.0.0.1:8080",
        "KNHK_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "KNHK_PORT_8080_TCP_PROTO": "tcp",
        "KNHK_METRICS_SERVICE_HOST": "10.0.0.2",
        "KNHK_METRICS_PORT": "tcp://10.0.0.2:9090",
        "KNHK_OBSERVABILITY_METRICS_PORT": "9191",
    }
    loaded = load(None, environ, {}, default_path=NOWHERE)
    assert loaded.config.observability.metrics_port == 9191
    (warning,) = loaded.warnings
    assert warning.startswith("KNHK_METRICS_PORT is ignored")


def test_secrets_are_never_shown(tmp_path: Path) -> None:
    text = (
        "auth: {client_secret: plain-hidden}\n"
        "observability: {endpoint: 'http://u:url-hidden@host'}\n"
        "cost_tracking: {pricing_model: '${MY_TOKEN}'}\n"
        "monitoring:\n  alert_channels:\n"
        "    - {type: email, addresses: ['${PASSWORD}', shown]}\n"
        "    - {type: slack, webhook_url: 'https://channel-hidden'}\n"
    )
    loaded = load_text(tmp_path, text, {**HOME, "MY_TOKEN": "token-hidden", "PASSWORD": "password-hidden"})
    rows = {row.key: row for row in redacted(loaded)}
    assert "hidden" not in "".join(row.value for row in rows.values())
    assert not {"plain-hidden", "channel-hidden"} & set(re.findall(r"\w+-hidden", repr(loaded)))
    assert rows["auth.client_secret"].value == "********"
    assert rows["observability.endpoint"].value == "http://u:********@host"
    assert rows["cost_tracking.pricing_model"].value == "********"
    assert rows["monitoring.alert_channels"].value == (
        "[{type: email, addresses: [********, shown], severity: warning}, "
        "{type: slack, webhook_url: ********, severity: warning}]"
    )
    assert rows["platform.workflow_timeout"].value == "5m"
    assert rows["persistence.min_free"].value == "64MB"
    assert set(rows) == set(loaded.sources)


def test_problems_do_not_show_secrets(tmp_path: Path) -> None:
    text = (
        "api: {port: '${MY_TOKEN}'}\nplatform: {tick: '${MY_TOKEN}', log_level: '${MY_TOKEN}'}\n"
        "auth: {client_secret: [hidden]}\n"
    )
    problems = problems_of(tmp_path, text, {**HOME, "MY_TOKEN": "hidden"})
    assert len(problems) == 4
    assert "hidden" not in "".join(problems)


def test_what_is_switched_off_is_not_complained_about(tmp_path: Path) -> None:
    text = (
        "audit: {enabled: false, log_path: /x}\nauth: {provider: none}\ncluster: {mode: false}\n"
        "platform: {enable_learning: false}\n"
    )
    assert absent_sections(load_text(tmp_path, text)) == []


def test_a_sentence_says_who_set_what_and_what_it_means(tmp_path: Path) -> None:
    loaded = load_text(tmp_path, "tls: {enabled: true}\n", {**HOME, "KNHK_TLS_CERT": "/c"})
    assert absent_sections(loaded) == [
        f"tls (set by {tmp_path / 'config.yaml'}, KNHK_TLS_CERT) has no effect in this version: "
        "connections are plain HTTP, so put a proxy in front that encrypts them"
    ]
