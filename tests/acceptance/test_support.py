"""A support bundle has what helps and no secret, whether the server answers, is wedged, or is down."""

import hashlib
import json
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from knhk.config import keys
from knhk.config.keys import Shape
from tests.acceptance.server import Server

PLANTED = "pl4nted"
SECRETS = {
    "PAGERDUTY_KEY": f"{PLANTED}-pagerduty-0123456789",
    "SLACK_WEBHOOK": f"https://hooks.slack.com/services/T000/B000/{PLANTED}-slack",
    "OAUTH_SECRET": f"{PLANTED}-oauth",
    "SHOP_API_TOKEN": f"{PLANTED}-shop-token",
    "SHOP_DB_PASSWORD": f"{PLANTED}-shop-password",
    "OTLP_KEY": f"{PLANTED}-otlp",
}
SECTIONS = {
    "monitoring": {
        "alert_channels": [
            {"type": "pagerduty", "service_key": "${PAGERDUTY_KEY}"},
            {"type": "slack", "webhook_url": "${SLACK_WEBHOOK}"},
            {"type": "webhook", "webhook_url": f"http://127.0.0.1:9/{PLANTED}-hook", "secret": f"{PLANTED}-signs"},
        ],
        "smtp": {"username": "ops", "password": f"{PLANTED}-smtp"},
    },
    "auth": {"client_secret": "${OAUTH_SECRET}", "issuer": f"https://me:{PLANTED}-issuer@auth.company.com"},
    "observability": {
        "endpoint": f"http://collector:{PLANTED}-collector@127.0.0.1:9",
        "headers": "x-api-key=${OTLP_KEY}",
    },
    "actions": {
        "modules": ["tests.acceptance.leaky_actions", "tests.acceptance.blocking_actions"],
        "sql": {"connections": [{"name": "shop", "url": f"sqlite:////nowhere/{PLANTED}-sql.db"}]},
        "s3": {
            "connections": [
                {
                    "name": "lake",
                    "bucket": "lake",
                    "access_key_id": f"{PLANTED}-s3-id",
                    "secret_access_key": f"{PLANTED}-s3-secret",
                }
            ]
        },
        "notify": {"channels": [{"name": "ops", "url": f"json://ops:{PLANTED}-notify@127.0.0.1:9"}]},
    },
}
LEAKS = f"""\
apiVersion: knhk/v1
kind: Workflow
metadata: {{name: leaks}}
spec:
  inputs:
    password: {{type: string, default: {PLANTED}-input}}
  steps:
    - {{name: log, action: leaky.log, params: {{password: "${{{{ inputs.password }}}}"}}}}
    - {{name: fail, action: leaky.fail, params: {{token: {PLANTED}-param}}, depends_on: [log]}}
"""


class LeakyServer(Server):
    """A server whose configuration, environment and workflows are full of secrets."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, **SECTIONS)
        self.variables = dict(SECRETS)

    def bundle(self, *arguments: str) -> tuple[dict[str, str], str]:
        """The files of a bundle, and what the command says. Nothing that was planted is in any of them."""
        path = self.directory / "support.tar.gz"
        done = subprocess.run(
            [sys.executable, "-m", "knhk", "support", "bundle", "--output", str(path), *arguments],
            capture_output=True,
            env={**self.environment(), "KNHK_CONFIG": str(self.config)},
            cwd=self.directory,
            timeout=100,
            check=True,
        )
        assert path.stat().st_mode & 0o077 == 0
        with tarfile.open(path) as archive:
            files = {}
            for member in archive.getmembers():
                file = archive.extractfile(member)
                assert file is not None
                files[member.name.removeprefix("support/")] = file.read().decode()
        for name, text in files.items():
            assert PLANTED not in text, f"{name}: {re.findall(f'.*{PLANTED}.*', text)[:3]}"
        return files, done.stderr.decode()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LeakyServer]:
    running = LeakyServer(tmp_path)
    try:
        yield running
    finally:
        running.close()


def secret_keys(shape: Shape, path: str = "") -> Iterator[str]:
    """Every place in the configuration whose type says that it is a secret."""
    if shape.secret:
        yield path
    for name, inner in (shape.fields or {}).items():
        yield from secret_keys(inner, f"{path}.{name}" if path else name)
    if shape.item is not None:
        yield from secret_keys(shape.item, path)


def test_every_key_that_holds_a_secret_is_planted_with_one() -> None:
    config = yaml.safe_dump(SECTIONS)
    for place in secret_keys(keys.root()):
        name = place.rpartition(".")[2]
        assert re.search(rf"\b{name}: \S*(?:{PLANTED}|\$\{{)", config), f"plant a secret at {place}"


def test_a_bundle_of_a_running_server_has_everything_and_no_secret(server: LeakyServer) -> None:
    server.start()
    name = server.submit(LEAKS)
    server.wait_for(name, "failed")
    files, said = server.bundle()
    assert "The server answers." in said
    manifest = json.loads(files["manifest.json"])
    assert manifest["missing"] == []
    assert {one["name"] for one in manifest["files"]} == set(files) - {"manifest.json"}
    for one in manifest["files"]:
        assert hashlib.sha256(files[one["name"]].encode()).hexdigest() == one["sha256"]
    assert "MainThread" in files["tasks.json"]
    assert "knhk_workflows_total" in files["metrics.txt"]
    assert json.loads(files["heap.json"])["types"]
    assert json.loads(files["system.json"])["packages"]["uvloop"]
    assert json.loads(files["health.json"])["checks"]["persistence"] == "ok"
    values = {row["key"]: row["value"] for row in json.loads(files["config.json"])["values"]}
    assert values["auth.client_secret"] == "********"
    (line,) = [one for one in files["recent.log"].splitlines() if "connecting with" in one]
    assert "the pager's key is ********" in line  # known here by its value alone
    assert "connecting with" in files["log.txt"]
    # What the server says elsewhere is free of what it knows to be secret, too.
    recorded = (server.directory / "diagnostics" / "recent.log").read_text()
    assert "the pager's key is" in recorded
    assert PLANTED not in recorded

    files, _ = server.bundle("--max-size", "20KB")
    assert sum(len(text) for name, text in files.items() if name != "manifest.json") <= 20 << 10
    manifest = json.loads(files["manifest.json"])
    assert manifest["missing"] or any("cut_from_bytes" in one for one in manifest["files"])


def test_a_bundle_of_a_server_that_is_down(server: LeakyServer) -> None:
    server.start()
    server.kill()
    files, said = server.bundle()
    assert "its process is not" in said
    assert '"event":"ready"' in files["recent.log"]
    assert json.loads(files["manifest.json"])["server_state"].startswith("does not answer")
    assert "CURRENT" in files["store/files.txt"]
    assert "tasks.json" not in files


def test_a_bundle_of_a_server_that_keeps_python_s_lock(server: LeakyServer) -> None:
    server.start()
    server.submit("""\
apiVersion: knhk/v1
kind: Workflow
metadata: {name: wedge}
spec:
  steps: [{name: only, action: test.lock, params: {seconds: 60}}]
""")
    time.sleep(1)
    files, said = server.bundle()
    assert "its process is there" in said
    assert re.search(r'blocking_actions.py", line \d+ in lock', files["stuck.txt"])
    assert json.loads(files["process.json"])["threads"] > 1
    assert server.process is not None
    assert server.process.poll() is None  # asking for the stacks has not ended it
    server.process.send_signal(signal.SIGKILL)


def test_a_bundle_is_made_without_a_server_or_a_good_configuration(server: LeakyServer) -> None:
    server.config.write_text("platfrom: {}\n")
    files, said = server.bundle("--operations", "http://127.0.0.1:9")
    assert json.loads(files["system.json"])["kernel"]
    assert "local-config.json" in said
    (missing,) = json.loads(files["manifest.json"])["missing"]
    assert missing["name"] == "local-config.json"
