"""Small questions to web services: bounded in time and size, over TLS, without following redirections.

The standard library's client, in a thread, is all that this needs: an asynchronous one would be another
dependency to load at every start, for a question every few minutes.
"""

import asyncio
import base64
import http.client
import ipaddress
import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlencode, urlsplit

from ministream.base.errors import UserError
from s2cs.auth import Unreachable

TIMEOUT = 5.0
"""Seconds until an answer is given up: for a person who waits, and long enough for a service far away."""

MAX_ANSWER = 1 << 20
"""Bytes: a key set holds a few kilobytes."""


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """Takes a redirection for an error: secrets go to the address that the operator gave and to no other."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none."""
        return


def check_url(url: str) -> str:
    """Return `url` if it is https, or http to this host itself.

    Raises
    ------
    UserError
        If it is not, or is no URL of a service.
    """
    parts = urlsplit(url)
    plain_here = parts.scheme == "http" and _is_loopback(parts.hostname or "")
    if not (parts.hostname and (parts.scheme == "https" or plain_here)) or "@" in parts.netloc:
        raise UserError(f"{url!r} is not accepted: give an address that begins with https:// and holds no password")
    return url


async def ask(
    url: str, *, form: dict[str, str] | None = None, login: tuple[str, str] | None = None, timeout: float = TIMEOUT
) -> dict[str, Any]:
    """Return the JSON object at `url`; `form` is posted, `login` is (user, password).

    Raises
    ------
    Unreachable
        With the URL and the reason, if there is no such answer within `timeout` seconds.
    UserError
        If the URL itself is not acceptable.
    """
    check_url(url)
    try:
        async with asyncio.timeout(timeout):
            return await asyncio.to_thread(_exchange, url, form, login, timeout)
    except TimeoutError as error:
        raise Unreachable(f"no answer from {_name(url)} within {timeout:g} s; try again later") from error
    except urllib.error.HTTPError as error:
        error.close()
        raise Unreachable(f"{_name(url)} answered with HTTP status {error.code}") from error
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror or error
        raise Unreachable(f"{_name(url)} cannot be reached: {reason}") from error
    except (ValueError, RecursionError, http.client.HTTPException) as error:
        raise Unreachable(f"{_name(url)} gave no sensible answer: {error}") from error


def _exchange(url: str, form: dict[str, str] | None, login: tuple[str, str] | None, timeout: float) -> dict[str, Any]:
    body = None if form is None else urlencode(form).encode()
    request = urllib.request.Request(url, body, {"Accept": "application/json"})  # noqa: S310 - see check_url
    if login:
        request.add_header("Authorization", "Basic " + base64.b64encode(":".join(login).encode()).decode())
    handlers: list[urllib.request.BaseHandler] = [_NoRedirection()]
    if _is_loopback(urlsplit(url).hostname or ""):
        handlers.append(urllib.request.ProxyHandler({}))  # plain HTTP must not leave this host
    with urllib.request.build_opener(*handlers).open(request, timeout=timeout) as response:
        content = response.read(MAX_ANSWER + 1)
    if len(content) > MAX_ANSWER:
        raise ValueError(f"it is longer than {MAX_ANSWER} bytes")
    answer = json.loads(content)
    if not isinstance(answer, dict):
        raise ValueError("it is no JSON object")
    return answer


def _name(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
