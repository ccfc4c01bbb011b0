"""Who may ask the receiver, and how it is known: a token, and a certificate of its own.

Both are made on the first start, into a folder that clients read. The certificate is self-signed and clients trust
exactly it, whatever name or address they reach the receiver by; its key never enters that folder's files. A key that
was lost (a folder in memory) is made anew together with its certificate; the token stays.
"""

import datetime
import os
import secrets
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ministream.base.errors import UserError
from ministream.base.files import whole_or_absent

NAME = "ministream-receiver"
LIFETIME = datetime.timedelta(days=3650)
"""The certificate is trusted by itself, so that only who replaces the file ends it."""
BACKDATED = datetime.timedelta(hours=1)
"""Clients' clocks may be late."""

SECRET, SHARED, OPEN = 0o600, 0o640, 0o644
"""Modes of the key, of the token (its group may read it), of the certificate."""


@dataclass(frozen=True, slots=True)
class Access:
    """The files in the access folder."""

    folder: Path

    @property
    def token_file(self) -> Path:
        """Holds the token (0640)."""
        return self.folder / "token"

    @property
    def certificate(self) -> Path:
        """What clients trust."""
        return self.folder / "receiver.crt"

    def token(self) -> str:
        """Return the token.

        Raises
        ------
        UserError
            If there is none (as yet).
        """
        try:
            token = self.token_file.read_text().strip()
        except OSError as error:
            raise UserError(f"{self.token_file}: {error.strerror}; the receiver writes it when it starts") from error
        if not token:
            raise UserError(f"{self.token_file} is empty: remove it, and the receiver makes a new one")
        return token

    def tls(self) -> ssl.SSLContext:
        """Return a client's settings: TLS to the owner of this very certificate.

        Raises
        ------
        UserError
            If there is none (as yet).
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # nothing but this certificate is trusted: a name would add nothing
        try:
            context.load_verify_locations(self.certificate)
        except (OSError, ssl.SSLError) as error:
            raise UserError(f"{self.certificate}: {error.strerror}; the receiver writes it when it starts") from error
        return context


def prepare(access: Access, key_folder: Path) -> Path:
    """Make the token, the key and the certificate that are missing; return the key's file.

    Raises
    ------
    UserError
        If a file cannot be written or read.
    """
    key = key_folder / "receiver.key"
    try:
        access.folder.mkdir(parents=True, exist_ok=True)
        key_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not access.token_file.exists():
            _write(access.token_file, f"{secrets.token_urlsafe(32)}\n".encode(), SHARED)
        if not _belong_together(key, access.certificate):
            _make_pair(key, access.certificate)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"the receiver's access files in {access.folder} and {key_folder}: {error}") from error
    return key


def _belong_together(key: Path, certificate: Path) -> bool:
    if not (key.exists() and certificate.exists()):
        return False
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    return x509.load_pem_x509_certificate(certificate.read_bytes()).public_key() == private.public_key()


def _make_pair(key_file: Path, certificate_file: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8
    _write(key_file, key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()), SECRET)
    _write(certificate_file, certificate.public_bytes(serialization.Encoding.PEM), OPEN)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file that at no moment more may read than in the end."""
    with whole_or_absent(path) as aside:
        aside.unlink(missing_ok=True)
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, SECRET), "wb") as file:  # noqa: PTH123
            file.write(content)
            os.fchmod(file.fileno(), mode)
