"""The trust of one site: its own certificate authority (CA), the server's certificate and the first token.

`init_site` makes all of it in one private folder. Clients get a copy of `ca.crt`, which stays the same for years
while the server's certificate is renewed under it. `server.crt` holds the CA's certificate as well: SciStream's
clients, which are told to copy the server's own file, verify it with either.
"""

import datetime
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ministream.base.errors import UserError
from ministream.base.files import whole_or_absent
from s2cs.auth.tokens import TokenFile
from s2cs.files import PRIVATE_FILE, PUBLIC_FILE, make_private_folder

CA_LIFETIME = datetime.timedelta(days=3650)
SERVER_LIFETIME = datetime.timedelta(days=397)
"""Thirteen months: a yearly renewal that comes late still comes in time."""

BACKDATED = datetime.timedelta(hours=1)
"""For clients whose clocks are late."""

LOCAL = ("localhost", "127.0.0.1", "::1")
"""What a client on the gateway itself calls it: SciStream's default."""

_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")

Names = list[x509.GeneralName]


@dataclass(frozen=True, slots=True)
class Site:
    """The files of a site, all in one folder."""

    folder: Path

    @property
    def ca(self) -> Path:
        """Certificate of the CA: what clients get a copy of."""
        return self.folder / "ca.crt"

    @property
    def ca_key(self) -> Path:
        """Key of the CA (0600): used to renew, never by the server."""
        return self.folder / "ca.key"

    @property
    def certificate(self) -> Path:
        """Certificate of the server, followed by the CA's."""
        return self.folder / "server.crt"

    @property
    def key(self) -> Path:
        """Key of the server (0600)."""
        return self.folder / "server.key"

    @property
    def tokens(self) -> Path:
        """The local tokens (0600)."""
        return self.folder / "tokens.json"


def init_site(
    folder: Path, names: Sequence[str], *, user: str = "first", lifetime: float = 30 * 86400.0
) -> tuple[Site, str]:
    """Make CA, server certificate for `names` (host names and IP addresses) and a token for `user`.

    Returns the site and the token, which is good for `lifetime` seconds and can't be found out later.

    Raises
    ------
    UserError
        If the folder holds a site already or is open to others, or a name is none.
    """
    site, hosts = Site(folder), _read_names(names)
    make_private_folder(folder)
    present = [p.name for p in (site.ca, site.ca_key, site.certificate, site.key, site.tokens) if p.exists()]
    if present:
        raise UserError(
            f"{folder} holds {', '.join(present)} already: renew with s2cs init --renew, or name a new folder"
        )
    token = TokenFile(site.tokens).add(user, lifetime)  # first, since a name may be refused
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = _make_ca(ca_key, str(hosts[0].value))
    for path, own in ((site.ca_key, ca_key), (site.key, key)):
        with whole_or_absent(path, PRIVATE_FILE) as aside:
            aside.write_bytes(_key_pem(own))
    with whole_or_absent(site.ca, PUBLIC_FILE) as aside:
        aside.write_bytes(_pem(ca))
    _write_chain(site, _make_server(key.public_key(), hosts, ca, ca_key), ca)
    return site, token


def renew_site(folder: Path, names: Sequence[str] = ()) -> Site:
    """Give the server a new certificate, for `names` or else for the names in the old one.

    Its key stays, so that there is no instant in which key and certificate do not belong together; so does the
    CA, and with it what clients have.

    Raises
    ------
    UserError
        If the folder holds no site, its CA itself is about to end, or a name is none.
    """
    site = Site(folder)
    try:
        ca, old = (x509.load_pem_x509_certificate(p.read_bytes()) for p in (site.ca, site.certificate))
        ca_key = serialization.load_pem_private_key(site.ca_key.read_bytes(), None)
        held = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; make a site with s2cs init") from error
    except (ValueError, TypeError, x509.ExtensionNotFound) as error:
        raise UserError(f"{folder} holds files that s2cs init did not write; name another folder") from error
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey) or ca_key.public_key() != ca.public_key():
        raise UserError(f"{site.ca_key} is not the key of {site.ca}; restore it, or make a new site with s2cs init")
    if ca.not_valid_after_utc < _now() + SERVER_LIFETIME:
        raise UserError(f"the CA in {folder} ends on {ca.not_valid_after_utc:%Y-%m-%d}: make a new site with s2cs init")
    hosts = _read_names(names) if names else list(held)
    _write_chain(site, _make_server(_check_server_key(old), hosts, ca, ca_key), ca)
    return site


def server_names(site: Site) -> list[str]:
    """Return the host names and addresses that the server's certificate holds."""
    certificate = x509.load_pem_x509_certificate(site.certificate.read_bytes())
    held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in held]


def _read_names(names: Sequence[str]) -> Names:
    """Return `names`, and this host's own for itself, as a certificate holds them; each once."""
    if not names:
        raise UserError("no name was given: name the hosts and addresses by which clients reach the gateway")
    return [_read_name(name) for name in dict.fromkeys([*(name.strip().lower() for name in names), *LOCAL])]


def _read_name(name: str) -> x509.GeneralName:
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        if _HOST.fullmatch(name) and not name.rpartition(".")[2].isdigit():
            return x509.DNSName(name)
        raise UserError(f"{name!r} is neither a host name nor an IP address (without port)") from None
    if address.is_unspecified or address.is_multicast:
        raise UserError(f"nobody reaches the gateway at {name}: give the addresses that clients connect to")
    return x509.IPAddress(address)


def _check_server_key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise UserError("the server's certificate is not one that s2cs init made: name another folder")
    return key


def _write_chain(site: Site, certificate: x509.Certificate, ca: x509.Certificate) -> None:
    with whole_or_absent(site.certificate, PUBLIC_FILE) as aside:
        aside.write_bytes(_pem(certificate) + _pem(ca))


def _make_ca(key: ec.EllipticCurvePrivateKey, host: str) -> x509.Certificate:
    name = _subject(f"s2cs CA of {host}")
    usage = _usage(key_cert_sign=True, crl_sign=True)
    builder = (
        _builder(name, name, key.public_key(), CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    return builder.sign(key, hashes.SHA256())


def _make_server(
    key: ec.EllipticCurvePublicKey, hosts: Names, ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    builder = (
        _builder(_subject(str(hosts[0].value)), ca.subject, key, SERVER_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(issuer, critical=False)
    )
    return builder.sign(ca_key, hashes.SHA256())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, lifetime: datetime.timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - BACKDATED)
        .not_valid_after(_now() + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(**allowed: bool) -> x509.KeyUsage:
    every = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign crl_sign "
        "encipher_only decipher_only"
    )
    return x509.KeyUsage(**{**dict.fromkeys(every.split(), False), **allowed})


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])  # as long as X.520 lets it be


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())
