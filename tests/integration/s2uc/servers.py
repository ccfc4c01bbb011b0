"""Control servers of both generations, by their behaviour alone: SciStream's own, and ours."""

import contextlib
import datetime
import ipaddress
import socket
import threading
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from s2cs.client import Gateway
from s2cs.proto import scistream_pb2 as pb
from s2cs.proto import scistream_pb2_grpc as rpc

CERTIFICATE = "-----BEGIN CERTIFICATE-----\nof {}\n-----END CERTIFICATE-----\n"


class OldServer(rpc.ControlServicer):
    """What an existing SciStream server does; the data plane is a socket that listens."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []
        self.entries: dict[str, dict] = {}
        self.missed: list[str] = []
        """Calls that came before the request that they belong to."""
        self.refuse: dict[str, str] = {}
        self.tokens: set[str] = set()
        self.required = ""
        self.held = threading.Event()
        self.held.set()

    def begin(self, name: str, request: object, context: grpc.ServicerContext) -> None:
        self.calls.append((name, request))
        token = dict(context.invocation_metadata()).get("authorization", "")
        self.tokens.add(token)
        if self.required and token != self.required:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Authentication token is invalid for scope x")
        if name in self.refuse:
            raise RuntimeError(self.refuse[name])
        if name == "req" and request.uid in self.entries:
            raise RuntimeError("Entry already found for uid")
        if name not in ("req", "list") and request.uid not in self.entries:
            self.missed.append(name)
            raise RuntimeError(f"{name} request invalid, entry not found for uid '{request.uid}'")

    def listen(self, request: pb.Request) -> dict:
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(request.num_conn)]
        listeners = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
        entry = {
            "sockets": sockets,
            "listeners": listeners,
            "greeted": threading.Event(),
            "targets": [],
            "role": request.role,
        }
        self.entries[request.uid] = entry
        return entry

    def req(self, request, context):
        self.held.wait(60)
        self.begin("req", request, context)
        entry = self.listen(request)
        assert entry["greeted"].wait(60)
        return pb.Response(listeners=entry["listeners"], prod_listeners=entry["targets"])

    def hello(self, request, context):
        self.begin("hello", request, context)
        entry = self.entries[request.uid]
        entry["targets"] = list(request.prod_listeners)
        entry["greeted"].set()
        return pb.AppResponse(message="Sending listeners...", listeners=entry["listeners"])

    def update(self, request, context):
        self.begin("update", request, context)
        return pb.Response(listeners=self.entries[request.uid]["listeners"], prod_listeners=request.remote_listeners)

    def release(self, request, context):
        self.begin("release", request, context)
        self.end(request.uid)
        return pb.Response()

    def end(self, uid: str) -> None:
        entry = self.entries.pop(uid)
        entry["greeted"].set()  # nobody waits for what is over
        for s in entry["sockets"]:
            s.close()

    def named(self, name: str) -> list:
        return [request for called, request in self.calls if called == name]


class OurServer(OldServer, rpc.GatewayServicer):
    """The fields and calls that ours adds."""

    name = "ours"
    lease = 0.0

    def req(self, request, context):
        self.begin("req", request, context)
        entry = self.listen(request)
        assert request.greeted
        certificate = CERTIFICATE.format(self.name) if request.encrypted else ""
        return pb.Response(
            listeners=entry["listeners"],
            prod_listeners=request.targets,
            certificate=certificate,
            warnings=["mind the gap"],
        )

    def renew(self, request, context):
        self.begin("renew", request, context)
        return pb.RenewReply(lease_seconds=self.lease)

    def list(self, request, context):
        self.begin("list", request, context)
        return pb.ListReply(
            sessions=[
                pb.SessionState(
                    uid=uid, role=e["role"], state="streaming", owner="ann", listeners=e["listeners"], bytes_in=42
                )
                for uid, e in self.entries.items()
                if request.uid in ("", uid)
            ]
        )


def make_certificate(folder: Path, name: str) -> tuple[Path, bytes, bytes]:
    """Return the file of a self-signed certificate for 127.0.0.1, its PEM and its key's."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / f"{name}.crt"
    path.write_bytes(pem)
    return path, pem, private


@contextlib.contextmanager
def both(a: str, b: str, ca: Path, **options):
    with (
        Gateway(a, name="producer gateway", ca=[ca], **options) as producer,
        Gateway(b, name="consumer gateway", ca=[ca], **options) as consumer,
    ):
        yield producer, consumer


def connect_arguments(a: str, b: str, ca: Path, *more: str) -> list[str]:
    return ["connect", "--producer-s2cs", a, "--consumer-s2cs", b, "--target", "127.0.0.1:9,10", "--ca", str(ca), *more]
