"""The driver for Kubernetes against an API server at the wire: TLS with a CA of its own, tokens, versions, refusals."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from knhk.domain.errors import Conflict, InvalidConfiguration, Refused, Unavailable
from knhk.scaling.kubernetes import KubernetesScaler, statefulset_of
from tests.services.kubernetes import NAMESPACE, PATH, ApiServer


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    server = ApiServer(tmp_path)
    yield server
    server.close()


@pytest.fixture
async def scaler(api: ApiServer) -> AsyncIterator[KubernetesScaler]:
    made = KubernetesScaler.of_pod({**api.environment, "HOSTNAME": "knhk-0"}, api.account, "")
    yield made
    await made.aclose()


async def test_it_reads_and_changes_the_number(api: ApiServer, scaler: KubernetesScaler) -> None:
    assert await scaler.current() == 3
    await scaler.scale_to(5)
    assert (api.replicas, await scaler.current()) == (5, 5)
    assert not api.faults
    methods = [method for method, _ in api.requests]
    assert methods == ["GET", "PATCH", "GET"]
    assert api.requests[1][1] == {"metadata": {"resourceVersion": "1000"}, "spec": {"replicas": 5}}
    assert NAMESPACE in PATH


async def test_none_is_left_out_of_the_object(api: ApiServer, scaler: KubernetesScaler) -> None:
    api.set(0)
    assert await scaler.current() == 0


async def test_what_changed_since_it_was_read_is_not_overwritten(api: ApiServer, scaler: KubernetesScaler) -> None:
    """So that a process that was stopped between reading and writing does no harm."""
    await scaler.current()
    api.set(7)
    with pytest.raises(Conflict, match="the object has been modified"):
        await scaler.scale_to(2)
    assert api.replicas == 7
    with pytest.raises(Conflict, match="not read yet"):  # nor is it tried again blindly
        await scaler.scale_to(2)
    assert await scaler.current() == 7
    await scaler.scale_to(2)
    assert api.replicas == 2


async def test_a_token_that_was_rotated_is_read_anew(api: ApiServer, scaler: KubernetesScaler) -> None:
    assert await scaler.current() == 3
    api.token = "token-2"  # the old one is over, and the new one is not written yet
    with pytest.raises(Unavailable, match="401"):
        await scaler.current()
    api.rotate("token-2")
    assert await scaler.current() == 3


async def test_missing_rights_name_the_role(api: ApiServer, scaler: KubernetesScaler) -> None:
    await scaler.current()
    said = 'statefulsets.apps "knhk" is forbidden: User cannot patch resource "statefulsets/scale"'
    api.fails = [(403, said)]
    with pytest.raises(Refused, match="is forbidden") as raised:
        await scaler.scale_to(4)
    assert "docs/scaling.md" in raised.value.advice
    assert api.replicas == 3


@pytest.mark.parametrize("code", [429, 500, 503, 504])
async def test_what_passes_is_unavailable(api: ApiServer, scaler: KubernetesScaler, code: int) -> None:
    api.fails = [(code, "etcdserver: request timed out")]
    with pytest.raises(Unavailable, match=f"HTTP {code}: etcdserver"):
        await scaler.current()
    assert await scaler.current() == 3


async def test_a_statefulset_that_is_not_there_is_refused(api: ApiServer) -> None:
    scaler = KubernetesScaler.of_pod(api.environment, api.account, "other")
    with pytest.raises(Refused, match="could not find"):
        await scaler.current()
    await scaler.aclose()


async def test_a_server_with_another_authority_gets_no_token(api: ApiServer, tmp_path: Path) -> None:
    other = ApiServer(tmp_path / "other")
    (api.account / "ca.crt").write_bytes((other.account / "ca.crt").read_bytes())
    scaler = KubernetesScaler.of_pod(api.environment, api.account, "knhk")
    with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
        await scaler.current()
    assert not api.requests
    await scaler.aclose()
    other.close()


async def test_a_server_that_is_gone_and_comes_back(api: ApiServer, scaler: KubernetesScaler) -> None:
    assert await scaler.current() == 3
    api.close()
    await scaler.aclose()
    with pytest.raises(Unavailable, match="does not answer"):
        await scaler.current()


async def test_files_that_are_missing_are_named(api: ApiServer, scaler: KubernetesScaler) -> None:
    (api.account / "token").unlink()
    with pytest.raises(Unavailable, match="token"):
        await scaler.current()
    (api.account / "namespace").unlink()
    with pytest.raises(InvalidConfiguration, match="namespace"):
        KubernetesScaler.of_pod(api.environment, api.account, "knhk")
    with pytest.raises(InvalidConfiguration, match="KUBERNETES_SERVICE_HOST"):
        KubernetesScaler.of_pod({}, api.account, "knhk")
    with pytest.raises(InvalidConfiguration, match=r"scaling\.statefulset"):
        KubernetesScaler.of_pod({**api.environment, "HOSTNAME": "laptop"}, api.account, "")


def test_the_statefulset_is_in_the_name_of_the_pod() -> None:
    assert statefulset_of("knhk-0") == "knhk"
    assert statefulset_of("my-knhk-12") == "my-knhk"
    assert statefulset_of("knhk-7d9c8b5f4-x2v9q") == ""
