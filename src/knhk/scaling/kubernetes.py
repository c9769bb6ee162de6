"""The driver for Kubernetes: the scale subresource of the StatefulSet that this pod belongs to.

    GET, PATCH  /apis/apps/v1/namespaces/<namespace>/statefulsets/<name>/scale     kind Scale, autoscaling/v1

With the pod's service account: token, CA and namespace are files, and the token is read for every request, because the
kubelet replaces it (bound tokens, about hourly). A change names the version that was read last (resourceVersion), so
that a process that was stopped in between, or that is leader no more, changes nothing: 409.
"""

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec

from knhk.domain.errors import Conflict, InvalidConfiguration, KnhkError, Refused, Unavailable

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT_S: Final = 10.0
_MERGE: Final = "application/merge-patch+json"
_LONGEST_REASON: Final = 300
_PASSING: Final = (408, 425, 429)
_SERVER_FAULT: Final = 500


class _Metadata(msgspec.Struct, rename="camel"):
    resource_version: str = ""


class _Spec(msgspec.Struct):
    replicas: int = 0


class Scale(msgspec.Struct):
    """The Scale object, as far as it is needed; a number that is left out is 0."""

    kind: str
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)
    spec: _Spec = msgspec.field(default_factory=_Spec)


class KubernetesScaler:
    """Implements ports.scaler.Scaler."""

    name = "kubernetes"

    def __init__(self, url: str, namespace: str, statefulset: str, account: Path) -> None:
        self._path = f"/apis/apps/v1/namespaces/{namespace}/statefulsets/{statefulset}/scale"
        self._url, self._account, self.statefulset = url, account, statefulset
        self._seen = ""
        self._client: httpx.AsyncClient | None = None

    @classmethod
    def of_pod(cls, environ: Mapping[str, str], account: Path, statefulset: str) -> "KubernetesScaler":
        """The driver of this pod; `statefulset` by default from the pod's name. Raises InvalidConfiguration."""
        host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            raise InvalidConfiguration(
                "scaling.driver is kubernetes, and this process is in no pod: KUBERNETES_SERVICE_HOST is not set"
            )
        name = statefulset or statefulset_of(environ.get("HOSTNAME") or os.uname().nodename)
        if not name:
            raise InvalidConfiguration(
                "scaling.statefulset is not set, and the pod's name does not end in a number",
                hint="Name the StatefulSet whose replicas are to be changed.",
            )
        try:
            namespace = (account / "namespace").read_text().strip()
        except OSError as error:
            raise InvalidConfiguration(
                f"the service account cannot be read: {error}",
                hint="Set automountServiceAccountToken: true for the pod.",
            ) from error
        return cls(f"https://{f'[{host}]' if ':' in host else host}:{port}", namespace, name, account)

    async def current(self) -> int:
        scale = await self._send("GET", None)
        self._seen = scale.metadata.resource_version
        return scale.spec.replicas

    async def scale_to(self, count: int) -> None:
        """Raises Conflict if anything changed since `current` was called last."""
        if not self._seen:
            raise Conflict("the number of replicas was not read yet")
        version, self._seen = self._seen, ""
        await self._send("PATCH", {"metadata": {"resourceVersion": version}, "spec": {"replicas": count}})

    async def aclose(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _send(self, method: str, body: Mapping[str, Any] | None) -> Scale:
        try:
            headers = {"authorization": f"Bearer {(self._account / 'token').read_text().strip()}"}
            if self._client is None:
                trusted = ssl.create_default_context(cafile=self._account / "ca.crt")
                self._client = httpx.AsyncClient(
                    base_url=self._url, verify=trusted, timeout=_TIMEOUT_S, trust_env=False
                )
            if body is not None:
                headers["content-type"] = _MERGE
            content = None if body is None else msgspec.json.encode(body)
            answer = await self._client.request(method, self._path, content=content, headers=headers)
        except OSError as error:
            raise Unavailable(f"the service account cannot be read: {error}") from error
        except httpx.HTTPError as error:
            # The CA is replaced now and then too: the next request reads it anew.
            await self.aclose()
            raise Unavailable(f"the API server does not answer: {type(error).__name__}: {error}") from error
        if not answer.is_success:
            raise _refusal(method, self._path, answer)
        try:
            scale = msgspec.json.decode(answer.content, type=Scale)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unavailable(f"the API server's answer is no Scale: {error}") from error
        if scale.kind != "Scale":
            raise Unavailable(f"the API server's answer is no Scale but a {scale.kind}")
        return scale


def statefulset_of(pod: str) -> str:
    """The StatefulSet in a pod's name, which is its name and an ordinal; empty if it is no such name."""
    name, _, ordinal = pod.rpartition("-")
    return name if ordinal.isdecimal() else ""


def _refusal(method: str, path: str, answer: httpx.Response) -> KnhkError:
    """What an answer means; Kubernetes describes it in an object of kind Status."""
    try:
        said = str(msgspec.json.decode(answer.content, type=dict[str, Any]).get("message", ""))
    except (msgspec.DecodeError, UnicodeDecodeError):
        said = answer.text
    text = f"{method} {path}: HTTP {answer.status_code}: {said[:_LONGEST_REASON]}"
    if answer.status_code == httpx.codes.CONFLICT:
        return Conflict(text)
    if answer.status_code in _PASSING or answer.status_code >= _SERVER_FAULT:
        return Unavailable(text)
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        return Unavailable(text, hint="The token of the service account is read anew for each request.")
    if answer.status_code == httpx.codes.FORBIDDEN:
        return Refused(text, hint="Give the service account a Role for statefulsets/scale; docs/scaling.md has one.")
    return Refused(text)
