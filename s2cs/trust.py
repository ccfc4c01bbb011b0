"""Trust for one session: a key made for it alone, and the certificate by which the peer is known.

Each gateway makes a pair when a session begins. Only certificates travel, and each side trusts exactly the other's:
it is self-signed, no authority, and short-lived, so it is good for nothing else. Neither key nor certificate has
anything to do with the session's name.
"""

import datetime
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ministream.base.errors import UserError

SESSION_NAME = "s2cs-session"
"""The name in every session certificate. Proxies that insist on checking a name check this one."""

VALIDITY = datetime.timedelta(days=30)
BACKDATED = datetime.timedelta(hours=1)
"""Gateways' clocks may differ by so much."""

MAX_PEM = 8192
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """Files of a session's own key (mode 0600) and certificate."""

    key: Path
    certificate: Path

    @property
    def pem(self) -> str:
        """The certificate as it travels to the peer."""
        return self.certificate.read_text()


def make_session_keys(folder: Path, name: str = "session") -> SessionKeys:
    """Make a fresh ECDSA P-256 key and its self-signed certificate as `name.key` and `name.crt` in `folder`."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, SESSION_NAME), x509.NameAttribute(NameOID.USER_ID, account_name())]
    )
    now = datetime.datetime.now(datetime.UTC)
    usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(SESSION_NAME)]), critical=False)
        .add_extension(usages, critical=False)
        .sign(key, hashes.SHA256())
    )
    # the "traditional" form is the one that OpenSSL, OpenSSH and paramiko all read
    form = serialization.PrivateFormat.TraditionalOpenSSL
    secret = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    keys = SessionKeys(folder / f"{name}.key", folder / f"{name}.crt")
    write_private(keys.key, secret)
    write_private(keys.certificate, certificate.public_bytes(serialization.Encoding.PEM))
    return keys


def account_name() -> str:
    """Return the name of the account that this gateway runs as; its certificates say it, for SSH logs in by name.

    An account without a name, as some container platforms give, is called by its number.
    """
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def account_of(certificate: x509.Certificate) -> str:
    """Return the account that a session certificate names."""
    return str(certificate.subject.get_attributes_for_oid(NameOID.USER_ID)[0].value)


def load_session_keys(folder: Path, name: str = "session") -> SessionKeys:
    """Find the keys that `make_session_keys` made there.

    Raises
    ------
    UserError
        If they are gone.
    """
    keys = SessionKeys(folder / f"{name}.key", folder / f"{name}.crt")
    if not (keys.key.is_file() and keys.certificate.is_file()):
        raise UserError(f"folder {folder} has lost the keys of its session; open a new one")
    return keys


def write_private(path: Path, content: bytes) -> None:
    """Write a file that nobody else may read, at no moment, whatever lay there before."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123
        file.write(content)


def check_peer_certificate(pem: str) -> str:
    """Return the peer's session certificate, written anew, if it is one and nothing else.

    Raises
    ------
    UserError
        Saying what is wrong with it.
    """
    try:
        certificate = _read_one(pem)
        certificate.verify_directly_issued_by(certificate)
        _check_content(certificate)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound) as error:
        reason = str(error) or "it is not signed by its own key"
        raise UserError(f"the other gateway's certificate is refused: {reason}; open a new session") from error
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _read_one(pem: str) -> x509.Certificate:
    text = pem.strip()
    if len(text) > MAX_PEM or not text.startswith(_BEGIN) or not text.endswith(_END) or text.count("-----BEGIN") != 1:
        raise ValueError("it is not exactly one certificate in PEM form")
    return x509.load_pem_x509_certificate(text.encode("ascii"))


def _check_content(certificate: x509.Certificate) -> None:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("its key is not an ECDSA key on P-256")
    extensions = certificate.extensions
    if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        raise ValueError("it may sign other certificates")
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if names.get_values_for_type(x509.DNSName) != [SESSION_NAME]:
        raise ValueError(f"its name is not {SESSION_NAME}")
    if len(certificate.subject.get_attributes_for_oid(NameOID.USER_ID)) != 1:
        raise ValueError("it names no account")
    now = datetime.datetime.now(datetime.UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise ValueError("it is not valid now: are both gateways' clocks right?")
