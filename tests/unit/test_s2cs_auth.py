"""Who is asking: local tokens, OpenID tokens and Globus logins, against real files and real web servers."""

import asyncio
import base64
import json
import multiprocessing
import os
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from ministream.base.errors import UserError
from s2cs.auth import Anonymous, Authenticator, Chain, Identity, Refused, Unreachable, read_token, web
from s2cs.auth.globus import CACHED, GlobusAuthenticator
from s2cs.auth.oidc import FRESH, RETRY, STALE, OidcAuthenticator
from s2cs.auth.tokens import TokenFile
from s2cs.site import init_site

AUDIENCE = "s2cs.example.org"
CLIENT, SECRET = "11111111-2222-3333-4444-555555555555", "top+secret/="
SCOPE = f"https://auth.globus.org/scopes/{CLIENT}/scistream"
LOGIN = "AgOpaqueGlobusToken"

RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()


class Service:
    """A web server on loopback; `answers` says what each path does, `asked` what came."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        service = self
        self.answers: dict[str, object] = {}
        self.asked: list[str] = []
        self.forms: list[tuple[str, dict[str, list[str]]]] = []
        self.gate = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service._serve(self)

            def do_POST(self) -> None:
                service._serve(self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """Take a client that hangs up for what it is."""

        self._server = Server(("127.0.0.1", 0), Handler)
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked.append(handler.path)
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        if body:
            self.forms.append((handler.headers.get("Authorization", ""), parse_qs(body.decode())))
        answer = self.answers.get(handler.path, 404)
        if callable(answer):
            answer = answer()
        if isinstance(answer, int):
            handler.send_response(answer)
            handler.send_header("Location", "/elsewhere")
            handler.end_headers()
            return
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(content)

    def stop(self) -> None:
        """End it: nobody answers at the address any more."""
        self.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.stop()


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def jwk(key: Any, kid: str, **more: str) -> dict[str, Any]:
    kind = {rsa.RSAPrivateKey: "RSA", ec.EllipticCurvePrivateKey: "EC"}
    name = next((v for k, v in kind.items() if isinstance(key, k)), "OKP")
    algorithm = {"RSA": jwt.algorithms.RSAAlgorithm, "EC": jwt.algorithms.ECAlgorithm}.get(name)
    public = (algorithm or jwt.algorithms.OKPAlgorithm).to_jwk(key.public_key(), as_dict=True)
    return {**public, "kid": kid, "use": "sig", **more}


def publish(service: Service, *keys: dict[str, Any]) -> None:
    service.answers["/.well-known/openid-configuration"] = {"issuer": service.url, "jwks_uri": service.url + "/keys"}
    service.answers["/keys"] = {"keys": list(keys)}


def token(service: Service, key: Any = RSA_KEY, algorithm: str = "RS256", kid: str | None = "a", **claims: Any) -> str:
    now = time.time()
    said = {"iss": service.url, "aud": AUDIENCE, "sub": "anna", "iat": now, "exp": now + 60, **claims}
    said = {name: value for name, value in said.items() if value is not None}
    return jwt.encode(said, key, algorithm, headers={} if kid is None else {"kid": kid})


def identify(authenticator: Authenticator, given: str) -> Identity:
    return asyncio.run(authenticator.identify(given))


def refusal(authenticator: Authenticator, given: str) -> str:
    """Return why `given` is refused, having made sure that it isn't quoted."""
    with pytest.raises(Refused) as caught:
        identify(authenticator, given)
    assert not given or given not in str(caught.value)
    return str(caught.value)


# --- local tokens ---


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path / "tokens.json")


def test_a_local_token_identifies_its_owner_and_the_file_does_not_hold_it(tokens: TokenFile, tmp_path: Path) -> None:
    anna, bob = tokens.add("anna", 60), tokens.add("bob@example.org", 60)
    assert identify(tokens, anna) == Identity("anna", "local")
    assert identify(tokens, bob) == Identity("bob@example.org", "local")
    content = (tmp_path / "tokens.json").read_text()
    assert anna not in content
    assert anna.removeprefix("s2cs_") not in content
    assert len(base64.urlsafe_b64decode(anna.removeprefix("s2cs_") + "=")) == 32
    assert stat.S_IMODE((tmp_path / "tokens.json").stat().st_mode) == 0o600


def test_a_running_server_sees_new_revoked_and_expired_tokens_at_once(tmp_path: Path) -> None:
    clock = Clock()
    server, operator = TokenFile(tmp_path / "t", clock), TokenFile(tmp_path / "t", clock)
    anna = operator.add("anna", 60)
    assert identify(server, anna).subject == "anna"
    bob = operator.add("bob", 120)
    assert identify(server, bob).subject == "bob"
    clock.now += 60
    assert "the token of anna expired on" in refusal(server, anna)
    assert identify(server, bob).subject == "bob"
    operator.revoke("bob")
    assert "unknown or was revoked" in refusal(server, bob)
    assert identify(server, operator.add("anna", 60)).subject == "anna"  # an expired one is replaced
    assert [entry.name for entry in server.entries()] == ["anna"]


def test_what_cannot_be_a_token_entry_is_refused(tokens: TokenFile) -> None:
    tokens.add("anna", 60)
    with pytest.raises(UserError, match="has a token already"):
        tokens.add("anna", 60)
    with pytest.raises(UserError, match="expires at once"):
        tokens.add("bob", 0)
    for name in ("", "a b", "a\n", "-x", "a" * 65):
        with pytest.raises(UserError, match="is no name"):
            tokens.add(name, 60)
    with pytest.raises(UserError, match=r"bob has no token in .*; there: anna"):
        tokens.revoke("bob")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"tokens": [{"name": "a"}]}', '{"tokens": [], "more": 1}', "\xff"])
def test_a_damaged_or_open_token_file_lets_nobody_in(
    tokens: TokenFile, tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, anna = tmp_path / "tokens.json", tokens.add("anna", 60)
    good = path.read_bytes()
    path.write_bytes(content.encode("latin-1"))
    assert "its log tells the operator" in refusal(tokens, anna)
    assert "is not one that s2cs wrote" in capsys.readouterr().out
    path.write_bytes(good)
    assert identify(tokens, anna).subject == "anna"
    path.chmod(0o640)
    assert "can't read its tokens" in refusal(tokens, anna)
    path.unlink()
    assert "can't read its tokens" in refusal(tokens, anna)
    assert anna not in capsys.readouterr().out


def _add_some(path: Path, name: str) -> None:
    for number in range(5):
        TokenFile(path).add(f"{name}{number}", 60)


def test_operators_at_the_same_time_lose_no_token(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_add_some, args=(tmp_path / "t", name)) for name in "abcd"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert {entry.name for entry in TokenFile(tmp_path / "t").entries()} == {
        f"{n}{i}" for n in "abcd" for i in range(5)
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == [".t.lock", "t"]


@given(st.text(max_size=60))
@settings(deadline=None, max_examples=100)
def test_no_other_text_passes_for_a_token(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    tokens = TokenFile(tmp_path_factory.getbasetemp() / "guessed.json")
    if not tokens.entries():
        tokens.add("anna", 3600)
    for guess in (text, "s2cs_" + text):
        with pytest.raises(Refused):
            identify(Chain([tokens]), guess)


# --- OpenID tokens ---


@pytest.mark.parametrize(
    ("key", "algorithm"), [(RSA_KEY, "RS256"), (RSA_KEY, "PS512"), (EC_KEY, "ES256"), (ED_KEY, "EdDSA")]
)
def test_a_signed_token_identifies_its_subject(service: Service, key: Any, algorithm: str) -> None:
    publish(service, jwk(key, "a"), jwk(rsa.generate_private_key(65537, 2048), "b"))
    oidc = OidcAuthenticator(service.url, AUDIENCE)
    good = token(service, key, algorithm)
    assert oidc.recognises(good)
    assert identify(oidc, good) == Identity("anna", service.url)
    assert identify(oidc, good) == Identity("anna", service.url)
    assert service.asked == ["/.well-known/openid-configuration", "/keys"]  # the keys are kept


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"exp": 1_000_000_000}, "has expired"),
        ({"nbf": 4_000_000_000}, "is not valid yet"),
        ({"aud": "other"}, f"meant for another service; ask for one for {AUDIENCE}"),
        ({"aud": None}, "has no claim 'aud'"),
        ({"exp": None}, "has no claim 'exp'"),
        ({"sub": None}, "has no claim 'sub'"),
        ({"sub": ""}, "names nobody"),
        ({"sub": 5}, "malformed"),
        ({"exp": "soon"}, "malformed"),
        ({"iss": "https://elsewhere.example.org"}, "issued by somebody else"),
    ],
)
def test_a_claim_that_does_not_fit_is_named(service: Service, claims: dict[str, Any], reason: str) -> None:
    publish(service, jwk(RSA_KEY, "a"))
    if claims.get("sub") == 5:  # which PyJWT itself won't write
        body = {"iss": service.url, "aud": AUDIENCE, "exp": time.time() + 60, "sub": 5}
        given_token = jwt.api_jws.encode(json.dumps(body).encode(), RSA_KEY, "RS256", headers={"kid": "a"})
    elif claims.get("exp") == "soon":
        body = {"iss": service.url, "aud": AUDIENCE, "exp": "soon", "sub": "anna"}
        given_token = jwt.api_jws.encode(json.dumps(body).encode(), RSA_KEY, "RS256", headers={"kid": "a"})
    else:
        given_token = token(service, **claims)
    assert reason in refusal(OidcAuthenticator(service.url, AUDIENCE), given_token)


def test_clocks_may_differ_a_little(service: Service) -> None:
    publish(service, jwk(RSA_KEY, "a"))
    oidc = OidcAuthenticator(service.url, AUDIENCE)
    assert identify(oidc, token(service, exp=time.time() - 30)).subject == "anna"
    assert identify(oidc, token(service, nbf=time.time() + 30)).subject == "anna"
    assert "expired" in refusal(oidc, token(service, exp=time.time() - 90))


def test_unsigned_and_secretly_signed_tokens_are_refused(service: Service) -> None:
    publish(service, jwk(RSA_KEY, "a"))
    oidc = OidcAuthenticator(service.url, AUDIENCE)
    assert "signed by 'none'" in refusal(oidc, token(service, "", "none"))
    public = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for secret in (public, public.strip(), json.dumps(jwk(RSA_KEY, "a")).encode(), b"x" * 32):
        head, body = (
            base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
            for part in (
                {"alg": "HS256", "typ": "JWT", "kid": "a"},
                {"iss": service.url, "aud": AUDIENCE, "sub": "anna", "exp": time.time() + 60},
            )
        )
        signed = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(head + b"." + body, secret)
        forged = b".".join([head, body, base64.urlsafe_b64encode(signed).rstrip(b"=")]).decode()
        assert "signed by 'HS256'" in refusal(oidc, forged)
    assert service.asked == []  # not worth a question


def test_forged_and_altered_signatures_are_refused(service: Service) -> None:
    publish(service, jwk(RSA_KEY, "a"), jwk(EC_KEY, "e"))
    oidc = OidcAuthenticator(service.url, AUDIENCE)
    stranger = rsa.generate_private_key(65537, 2048)
    assert "was not signed by" in refusal(oidc, token(service, stranger))
    head, _, signature = token(service).split(".")
    altered = f"{head}.{token(service, sub='root').split('.')[1]}.{signature}"
    assert "was not signed by" in refusal(oidc, altered)
    assert "names no signing key" in refusal(oidc, token(service, EC_KEY, "ES256", kid="a"))  # a key of another type
    hinted = jwt.encode({"iss": service.url}, stranger, "RS256", {"kid": "z", "jku": f"{service.url}/mine"})
    assert "names no signing key" in refusal(oidc, hinted)
    assert "/mine" not in service.asked
    for text in ("a.b.c", "..", "no token", token(service)[:-400], "é"):
        refusal(oidc, text)
        assert not oidc.recognises("a.b.c")


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (jwk(rsa.generate_private_key(65537, 1024), "a"), "too short: 1024 bits"),
        ({**jwk(RSA_KEY, "a"), "use": "enc"}, "names no signing key"),
        ({**jwk(RSA_KEY, "a"), "alg": "RS512"}, "names no signing key"),
        ({"kty": "RSA", "kid": "a"}, "can't be used"),
        ({"kty": "RSA", "kid": "a", "n": 5, "e": []}, "can't be used"),
        ({"kty": "oct", "kid": "a", "k": "c2VjcmV0"}, "names no signing key"),
    ],
)
def test_keys_that_are_not_fit_for_signatures_are_not_used(service: Service, key: dict[str, Any], reason: str) -> None:
    publish(service, key)
    assert reason in refusal(OidcAuthenticator(service.url, AUDIENCE), token(service))


def test_a_token_without_key_id_is_judged_only_by_the_only_key(service: Service) -> None:
    publish(service, jwk(RSA_KEY, "a"), jwk(EC_KEY, "e"))
    assert identify(OidcAuthenticator(service.url, AUDIENCE), token(service, kid=None)).subject == "anna"
    publish(service, jwk(RSA_KEY, "a"), jwk(rsa.generate_private_key(65537, 2048), "b"))
    assert "names no signing key" in refusal(OidcAuthenticator(service.url, AUDIENCE), token(service, kid=None))


def test_new_keys_are_noticed_and_withdrawn_ones_forgotten(service: Service) -> None:
    clock = Clock()
    publish(service, jwk(RSA_KEY, "a"))
    oidc = OidcAuthenticator(service.url, AUDIENCE, clock=clock)
    identify(oidc, token(service))
    publish(service, jwk(EC_KEY, "b"))
    new = token(service, EC_KEY, "ES256", kid="b")
    assert "names no signing key" in refusal(oidc, new)  # strangers can't make us ask again and again
    assert service.asked.count("/keys") == 1
    clock.now += RETRY
    assert identify(oidc, new).subject == "anna"
    assert "names no signing key" in refusal(oidc, token(service))
    publish(service, jwk(RSA_KEY, "a"))
    clock.now += FRESH + 1
    assert "names no signing key" in refusal(oidc, new)


def test_while_the_issuer_is_away_known_keys_serve_for_a_while(capsys: pytest.CaptureFixture[str]) -> None:
    clock, service = Clock(), Service()
    try:
        publish(service, jwk(RSA_KEY, "a"))
        oidc = OidcAuthenticator(service.url, AUDIENCE, clock=clock)
        identify(oidc, token(service))
    finally:
        service.stop()
    clock.now += STALE - 1
    assert identify(oidc, token(service)).subject == "anna"
    assert "Connection refused" in capsys.readouterr().out
    clock.now += 2
    with pytest.raises(Unreachable, match=r"keys of http.* can't be fetched"):
        identify(oidc, token(service))


@pytest.mark.parametrize(
    ("discovery", "keys", "logged"),
    [
        (404, None, "HTTP status 404"),
        (302, None, "HTTP status 302"),
        (b"<html>", None, "no sensible answer"),
        (b"[1]", None, "no JSON object"),
        (b"[" * 100_000, None, "no sensible answer"),
        (b" " * (web.MAX_ANSWER + 1), None, "longer than"),
        ({"issuer": "https://elsewhere.example.org"}, None, "describes itself as another issuer"),
        ({"jwks_uri": "http://keys.example.org"}, None, "not acceptable"),
        ({"jwks_uri": "file:///etc/passwd"}, None, "not acceptable"),
        ({}, 500, "HTTP status 500"),
    ],
)
def test_an_issuer_that_misbehaves_is_told_to_the_operator(
    service: Service, discovery: Any, keys: Any, logged: str, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(service)
    if isinstance(discovery, dict):
        discovery = {"issuer": service.url, "jwks_uri": service.url + "/keys", **discovery}
    service.answers["/.well-known/openid-configuration"] = discovery
    service.answers["/keys"] = keys
    with pytest.raises(Unreachable, match="can't be fetched"):
        identify(OidcAuthenticator(service.url, AUDIENCE), token(service))
    assert logged in capsys.readouterr().out
    assert "/elsewhere" not in service.asked


def test_an_issuer_that_never_answers_is_given_up_and_blocks_nobody(service: Service) -> None:
    service.answers["/slow"] = service.gate.wait

    async def scenario() -> None:
        question = asyncio.create_task(web.ask(service.url + "/slow", timeout=0.3))
        await asyncio.sleep(0)
        assert not question.done()  # it has had its turn: a call that kept the loop waiting would be over
        with pytest.raises(Unreachable, match=r"no answer from http://127.0.0.1:\d+/slow within 0.3 s"):
            await question

    asyncio.run(scenario())


def test_an_https_issuer_is_believed_only_with_a_known_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site, _ = init_site(tmp_path / "site", ["issuer.example.org"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(site.certificate, site.key)
    service = Service(context)
    try:
        publish(service, jwk(RSA_KEY, "a"))
        with pytest.raises(Unreachable):
            identify(OidcAuthenticator(service.url, AUDIENCE), token(service))
        assert "CERTIFICATE_VERIFY_FAILED" in capsys.readouterr().out
        monkeypatch.setenv("SSL_CERT_FILE", str(site.ca))
        assert identify(OidcAuthenticator(service.url, AUDIENCE), token(service)).subject == "anna"
    finally:
        service.stop()


@pytest.mark.parametrize(
    "url", ["http://issuer.example.org", "ftp://localhost", "issuer", "https://", "https://a:b@c.org"]
)
def test_only_https_issuers_are_accepted(url: str) -> None:
    with pytest.raises(UserError, match="begins with https"):
        OidcAuthenticator(url, AUDIENCE)


def test_an_issuer_needs_an_audience() -> None:
    with pytest.raises(UserError, match="no audience"):
        OidcAuthenticator("https://issuer.example.org", "")


def test_an_e_mail_address_counts_only_if_it_was_verified(service: Service) -> None:
    publish(service, jwk(RSA_KEY, "a"))
    oidc = OidcAuthenticator(service.url, AUDIENCE, claim="email")
    mail = "anna@example.org"
    assert identify(oidc, token(service, email=mail, email_verified=True)).subject == mail
    for verified in (None, False, "true"):
        assert "not been verified" in refusal(oidc, token(service, email=mail, email_verified=verified))


# --- Globus logins ---


def globus(service: Service, clock: Callable[[], float] = time.time, **answer: Any) -> GlobusAuthenticator:
    good = {
        "active": True,
        "scope": f"openid {SCOPE}",
        "exp": time.time() + 3600,
        "username": "anna@anl.gov",
        "sub": "1",
    }
    service.answers["/introspect"] = {**good, **answer}
    return GlobusAuthenticator(CLIENT, SECRET, endpoint=service.url + "/introspect", clock=clock)


def test_a_globus_login_is_introspected_with_our_credentials(service: Service) -> None:
    assert identify(globus(service), LOGIN) == Identity("anna@anl.gov", "https://auth.globus.org")
    ((authorization, form),) = service.forms
    assert base64.b64decode(authorization.removeprefix("Basic ")).decode() == f"{CLIENT}:{SECRET}"
    assert form == {"token": [LOGIN]}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"active": False}, "does not know the login"),
        ({"active": "true"}, "does not know the login"),
        ({"exp": 1_000_000_000}, "has expired"),
        ({"exp": None}, "has expired"),
        ({"exp": float("nan")}, "has expired"),
        ({"scope": "openid"}, "not given for this control server"),
        ({"scope": SCOPE + "2"}, "not given for this control server"),
        ({"scope": None}, "not given for this control server"),
        ({"username": None, "sub": None}, "whose login"),
    ],
)
def test_a_login_that_is_not_good_says_why_and_what_to_do(
    service: Service, answer: dict[str, Any], reason: str
) -> None:
    text = refusal(globus(service, **answer), LOGIN)
    assert reason in text
    assert f"log in again: s2uc login --scope {CLIENT}" in text


def test_who_is_not_logged_in_is_told_to_and_globus_is_not_asked(service: Service) -> None:
    text = "you are not logged in to Globus; log in: s2uc login"
    assert text in refusal(globus(service), "INVALID_TOKEN")
    assert text in refusal(Chain([globus(service)]), "INVALID_TOKEN")
    assert service.asked == []


def test_what_globus_said_holds_for_a_minute_and_never_beyond_the_logins_end(service: Service) -> None:
    clock = Clock()
    authenticator = globus(service, clock, exp=clock.now + CACHED + 30)
    for _ in range(3):
        identify(authenticator, LOGIN)
    refusals = globus(service, clock, active=False)
    for _ in range(3):
        refusal(refusals, LOGIN)
    assert len(service.asked) == 2
    clock.now += CACHED
    refusal(authenticator, LOGIN)  # withdrawn in the meantime
    assert len(service.asked) == 3
    short = globus(service, clock, exp=clock.now + 5)
    identify(short, LOGIN)
    clock.now += 5
    assert "has expired" in refusal(short, LOGIN)


def test_calls_at_once_with_one_login_ask_few_questions(service: Service) -> None:
    authenticator = globus(service)

    async def scenario() -> set[Identity]:
        return set(await asyncio.gather(*(authenticator.identify(LOGIN) for _ in range(50))))

    assert len(asyncio.run(scenario())) == 1
    assert len(service.asked) <= 4


@pytest.mark.parametrize("answer", [401, 403, 500, b"<html>"])
def test_an_answer_that_is_no_verdict_lets_nobody_in_and_is_not_kept(
    service: Service, answer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    authenticator = globus(service)
    good, service.answers["/introspect"] = service.answers["/introspect"], answer
    with pytest.raises(Unreachable, match="check its --client-id and --client-secret"):
        identify(authenticator, LOGIN)
    logged = capsys.readouterr().out
    assert "Globus can't be asked" in logged
    assert SECRET not in logged
    assert LOGIN not in logged
    service.answers["/introspect"] = good
    assert identify(authenticator, LOGIN).subject == "anna@anl.gov"


def test_globus_needs_credentials_and_https() -> None:
    with pytest.raises(UserError, match="--client-secret"):
        GlobusAuthenticator(CLIENT, "")
    with pytest.raises(UserError, match="https"):
        GlobusAuthenticator(CLIENT, SECRET, endpoint="http://auth.example.org")


# --- together ---


def test_each_token_goes_to_the_authenticator_it_is_meant_for_and_to_no_other(
    service: Service, tokens: TokenFile
) -> None:
    publish(service, jwk(RSA_KEY, "a"))
    chain = Chain([tokens, OidcAuthenticator(service.url, AUDIENCE), globus(service)])
    local = tokens.add("anna", 60)
    tokens.add("bob", 60)
    assert identify(chain, local).issuer == "local"
    tokens.revoke("anna")
    assert "unknown or was revoked" in refusal(chain, local)
    assert service.forms == []  # a local token is never shown to Globus
    assert identify(chain, token(service)).issuer == service.url
    assert "a kind that is not accepted" in refusal(chain, token(service, iss="https://elsewhere.example.org"))
    assert service.forms == []  # nor is somebody else's
    assert identify(chain, LOGIN).issuer == "https://auth.globus.org"


def test_who_sends_no_token_or_no_login_hears_what_is_taken(tokens: TokenFile) -> None:
    chain = Chain([tokens])
    assert "no token was sent; this control server takes a local token" in refusal(chain, "")
    assert "you are not logged in; this control server takes a local token" in refusal(chain, "INVALID_TOKEN")
    assert "is no token" in refusal(chain, "x" * 20_000)
    with pytest.raises(UserError, match="nobody could be let in"):
        Chain([])


def test_anonymous_takes_everybody() -> None:
    assert identify(Anonymous(), "") == identify(Anonymous(), "x") == Identity("anonymous", "nobody")


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ([("authorization", "abc")], "abc"),
        ([("user-agent", "x"), ("authorization", "Bearer abc")], "abc"),
        ([("authorization", " bearer  abc ")], "abc"),
        ([("authorization", "INVALID_TOKEN")], "INVALID_TOKEN"),
        ([("authorization", "Bearer")], ""),
        ([("authorization", "")], ""),
        ([("authorization-bin", b"abc")], ""),
        ([], ""),
    ],
)
def test_the_token_is_read_bare_or_after_bearer(metadata: list[tuple[str, str | bytes]], expected: str) -> None:
    assert read_token(metadata) == expected


def test_neither_client_nor_a_server_with_local_tokens_loads_what_only_openid_needs() -> None:
    code = (
        "import sys, s2cs.auth.tokens, s2cs.commands_site;"
        "print([m for m in ('jwt', 'cryptography', 'urllib.request', 'grpc') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "[]"
