"""TLS of the control server: its certificate, which may be renewed while it runs."""

from pathlib import Path

import grpc

from ministream.base.errors import UserError
from ministream.base.log import get_logger


def server_credentials(certificate: Path, key: Path) -> grpc.ServerCredentials:
    """Return TLS credentials from PEM files, read anew for later connections when the certificate has changed.

    Raises
    ------
    UserError
        If a file cannot be read.
    """
    version = _version(certificate)
    first = _server_configuration(certificate, key)

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        """Return the new configuration, or None while the present one still holds; must not raise."""
        nonlocal version
        try:
            if (now := _version(certificate)) == version:
                return None
            configuration = _server_configuration(certificate, key)
        except UserError as error:
            get_logger().error("the server's new certificate can't be read; the old one stays", reason=str(error))
            return None
        version = now
        return configuration

    # None means "no change" by gRPC's documentation; its stubs know no None
    return grpc.dynamic_ssl_server_credentials(first, renewed, False)  # type: ignore[arg-type]


def _server_configuration(certificate: Path, key: Path) -> grpc.ServerCertificateConfiguration:
    pair = (_read(key, b"PRIVATE KEY"), _read(certificate, b"BEGIN CERTIFICATE"))
    return grpc.ssl_server_certificate_configuration([pair])


def _version(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; make one with s2cs init") from error
    return status.st_ino, status.st_mtime_ns


def _read(path: Path, mark: bytes) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; make one with s2cs init") from error
    if mark not in content:
        raise UserError(f"{path} is no PEM file that holds a {mark.decode().removeprefix('BEGIN ').lower()}")
    return content
