"""Tokens that the user has been given, kept for later commands in a file that only they can read.

A token belongs to the gateway (`host:port`, or a host with all its ports) or the Globus scope under which it was
stored, and is sent nowhere else: one site's token is no business of another's.

Globus is spoken to directly (authorization code with PKCE), not by its SDK: that gives an access token for about two
days, and no refresh tokens, so that a later login is a new visit to the web page.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ministream.base.errors import UserError
from ministream.base.files import whole_or_absent
from s2cs.files import PRIVATE_FILE, make_private_folder

GLOBUS = "https://auth.globus.org"
GLOBUS_CLIENT = "4787c84e-9c55-4881-b941-cb6720cea11c"
"""SciStream's own user client, as Globus knows it (a public name, not a secret)."""
GLOBUS_SCOPE = "c42c0dac-0a52-408e-a04f-5d31bfe0aef8"
"""The control server that SciStream's client asks for unless told otherwise."""


def tokens_file() -> Path:
    """Return where tokens are kept: the user's configuration folder."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "s2uc" / "tokens.json"


def load() -> dict[str, str]:
    """Return all stored tokens by what they are for."""
    path = tokens_file()
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"tokens in {path} cannot be read ({error}); remove that file and log in again") from error
    return {str(name): str(token) for name, token in found.items()}


def store(name: str, token: str) -> None:
    """Keep `token` for `name`."""
    _save({**load(), name: check_token(token)})


def forget(name: str = "") -> int:
    """Remove the token of `name` (all, if empty); return how many were removed."""
    before = load()
    after = {key: token for key, token in before.items() if name and key != name}
    _save(after)
    return len(before) - len(after)


def find(*names: str) -> str:
    """Return the token of the first of `names` that has one, or an empty string."""
    tokens = load()
    return next((tokens[name] for name in names if name in tokens), "")


def check_token(text: str) -> str:
    """Strip `text`, and refuse what is no token without repeating it."""
    token = text.strip()
    if not token or not token.isascii() or any(c.isspace() or not c.isprintable() for c in token):
        raise UserError("that is no token: one word of printable ASCII is expected")
    return token


def read_token_file(path: Path) -> str:
    """Read the one token in `path`."""
    try:
        return check_token(path.read_text())
    except OSError as error:
        raise UserError(f"token file {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"token file {path}: {error}") from error


def _save(tokens: dict[str, str]) -> None:
    path = tokens_file()
    make_private_folder(path.parent)
    with whole_or_absent(path, PRIVATE_FILE) as aside:
        aside.write_text(json.dumps(tokens, indent=1))


def globus_login(scope: str, ask: Callable[[str], str], base: str = GLOBUS) -> str:
    """Get an access token for the control server `scope`.

    Parameters
    ----------
    scope
        Client id of the control server, as Globus knows it.
    ask
        Shown the page to visit, returns the code that the page gives.
    base
        Address of Globus Auth.
    """
    import base64  # these cost other commands time
    import hashlib
    import secrets
    from urllib.parse import urlencode

    verifier = secrets.token_urlsafe(48)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    asked = {"client_id": GLOBUS_CLIENT, "redirect_uri": f"{base}/v2/web/auth-code"}
    query = {
        **asked,
        "scope": f"https://auth.globus.org/scopes/{scope}/scistream",
        "state": "_default",
        "response_type": "code",
        "code_challenge": challenge,
        "code_challenge_method": "S256",
        "prompt": "login",
    }
    code = ask(f"{base}/v2/oauth2/authorize?{urlencode(query)}").strip()
    answer = _post(
        f"{base}/v2/oauth2/token",
        {**asked, "grant_type": "authorization_code", "code": code, "code_verifier": verifier},
    )
    for found in (answer, *answer.get("other_tokens", ())):
        if found.get("resource_server") == scope:
            return check_token(str(found.get("access_token", "")))
    raise UserError(f"Globus gave no token for the scope {scope}; is it a control server's client id?")


def _post(url: str, form: dict[str, str]) -> dict[str, Any]:
    from urllib.error import HTTPError, URLError
    from urllib.parse import urlencode
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(url, urlencode(form).encode()), timeout=20) as reply:  # noqa: S310 - Globus' own address
            return dict(json.load(reply))
    except HTTPError as error:
        raise UserError(
            f"Globus refused: {error.code} {error.reason}; was the code typed in full, and only once?"
        ) from error
    except (URLError, TimeoutError, ValueError) as error:
        raise UserError(f"Globus at {url} cannot be reached: {error}") from error
