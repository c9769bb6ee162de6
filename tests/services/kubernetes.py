"""The scale subresource of a StatefulSet on loopback: an HTTPS server that checks requests and answers as the real one.

Kubernetes API reference, apps/v1 StatefulSet, "read scale" and "patch scale": kind Scale of autoscaling/v1; errors are
objects of kind Status. Its certificate is of a CA that is made here, as a cluster has its own.
"""

import json
import ssl
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NAMESPACE, STATEFULSET = "knhk-system", "knhk"
PATH = f"/apis/apps/v1/namespaces/{NAMESPACE}/statefulsets/{STATEFULSET}/scale"
_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    415: "UnsupportedMediaType",
    500: "InternalError",
}


class ApiServer:
    """`replicas` and `version` are the object's; `token` is the one that is good; `fails` are answers to give first.

    `account` is a service account's directory, as the kubelet mounts it.
    """

    def __init__(self, directory: Path, replicas: int = 3) -> None:
        self.replicas, self.version, self.token = replicas, 1000, "token-1"
        self.fails: list[tuple[int, str]] = []
        self.down = False
        self.requests: list[tuple[str, dict[str, Any] | None]] = []
        self.faults: list[str] = []
        """What the real API server would have refused."""
        self.lock = threading.Lock()
        self.account = directory / "serviceaccount"
        self.account.mkdir(parents=True)
        key, certificate = _certificates(directory, self.account / "ca.crt")
        self.rotate("token-1")
        (self.account / "namespace").write_text(NAMESPACE)
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self.port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """What the kubelet puts into a pod's environment."""
        return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.port)}

    def rotate(self, token: str) -> None:
        """A new token, as the kubelet writes it: the old one is good no more."""
        self.token = token
        (self.account / "token").write_text(token)

    def set(self, replicas: int) -> None:
        """Somebody else changes the number."""
        with self.lock:
            self.replicas, self.version = replicas, self.version + 1

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, dict[str, Any]]:
        with self.lock:
            given = json.loads(body) if body else None
            self.requests.append((method, given))
            if headers.get("authorization") != f"Bearer {self.token}":
                return self._status(401, "Unauthorized")
            if path != PATH:
                return self._status(404, "the server could not find the requested resource")
            if self.down:
                return self._status(503, "the API server is shutting down")
            if self.fails:
                return self._status(*self.fails.pop(0))
            if method == "GET":
                return 200, self._scale()
            if method != "PATCH":
                return self._status(405, "MethodNotAllowed")
            return self._patch(headers, given)

    def _patch(self, headers: Any, given: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        if headers.get("content-type") != "application/merge-patch+json":
            return self._status(415, f"the body of the request was in an unknown format: {headers.get('content-type')}")
        if given is None or set(given) - {"metadata", "spec"} or type(given["spec"]["replicas"]) is not int:
            return self._status(400, "cannot unmarshal into Go value of type v1.Scale")
        expected = given.get("metadata", {}).get("resourceVersion")
        if expected is not None and expected != str(self.version):
            what = f'Operation cannot be fulfilled on statefulsets.apps "{STATEFULSET}"'
            return self._status(
                409, f"{what}: the object has been modified; please apply your changes to the latest version"
            )
        self.replicas, self.version = given["spec"]["replicas"], self.version + 1
        return 200, self._scale()

    def _scale(self) -> dict[str, Any]:
        return {
            "kind": "Scale",
            "apiVersion": "autoscaling/v1",
            "metadata": {
                "name": STATEFULSET,
                "namespace": NAMESPACE,
                "uid": "5b0c8d0e-0a0f-4f9e-9e7b-1d7c9d9c0a11",
                "resourceVersion": str(self.version),
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {"replicas": self.replicas} if self.replicas else {},  # omitempty
            "status": {"replicas": self.replicas, "selector": "app=knhk"},
        }

    def _status(self, code: int, message: str) -> tuple[int, dict[str, Any]]:
        if code in (400, 404, 405, 415):
            self.faults.append(message)
        return code, {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": _REASONS.get(code, ""),
            "code": code,
        }


def _handler(server: ApiServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            code, shown = server.answer(self.command, self.path, self.headers, body)
            raw = json.dumps(shown).encode()
            self.send_response(code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_PATCH = do_PUT = do_POST = _handle

        def log_message(self, *_: object) -> None:
            return

    return Handler


def _certificates(directory: Path, authority: Path) -> tuple[Path, Path]:
    """A CA, and a server's key and certificate for 127.0.0.1 that it has signed."""
    now = datetime.now(UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver")])

    def builder(name: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        )

    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    ca = (
        builder(issuer, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .add_extension(usage, critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    server = (
        builder(subject, key.public_key())
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    authority.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    key_file, certificate = directory / "server.key", directory / "server.crt"
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    certificate.write_bytes(server.public_bytes(serialization.Encoding.PEM))
    return key_file, certificate
