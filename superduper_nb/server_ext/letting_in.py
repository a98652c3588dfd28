"""Who is let in without Jupyter's `prepare`: programs with the server's token, where it is certain what that says."""

from __future__ import annotations

from collections.abc import Callable
from hmac import compare_digest
from typing import Any, Final

from jupyter_server.auth.authorizer import AllowAllAuthorizer
from jupyter_server.auth.identity import IdentityProvider, PasswordIdentityProvider
from jupyter_server.base.handlers import APIHandler, JupyterHandler
from tornado.httputil import HTTPServerRequest

__all__ = ["allows_all", "shows_the_token"]

_PROVIDERS: Final = (IdentityProvider, PasswordIdentityProvider)
_MODULES: Final = frozenset({IdentityProvider.__module__, JupyterHandler.__module__})


def shows_the_token(handler: type[JupyterHandler], provider: IdentityProvider, request: HTTPServerRequest) -> bool:
    """Say whether this is a program with the server's token, on a server where Jupyter's own code decides on that.

    Then, and only then, it is certain what Jupyter's `prepare` would come to. Browsers (they have cookies), tokens
    in a URL, passwords, and whatever others have put in the place of Jupyter's methods take the ordinary way.
    """
    headers = request.headers
    if type(provider) not in _PROVIDERS or "Cookie" in headers or "token" in request.arguments:
        return False
    shown = provider.auth_header_pat.match(headers.get("Authorization", ""))
    right = shown and provider.token and compare_digest(shown[2].encode(), provider.token.encode())
    return bool(right) and _is_jupyters_own(handler, provider)


def allows_all(authorizer: Any) -> bool:
    """Say whether an authorizer is Jupyter's default, which says yes to every user."""
    return (
        type(authorizer) is AllowAllAuthorizer
        and _written_in(authorizer.is_authorized) == AllowAllAuthorizer.__module__
    )


def _is_jupyters_own(handler: type[JupyterHandler], provider: IdentityProvider) -> bool:
    """Say whether all that decides in Jupyter's `prepare` is written there: some replace it (JupyterHub did)."""
    letting_in = (JupyterHandler.prepare, APIHandler.prepare, handler.get_current_user, handler.check_xsrf_cookie)
    knowing = (provider.get_user, provider.get_user_token, provider.get_token)
    trusting = (provider.is_token_authenticated, provider.should_check_origin)
    return all(_written_in(method) in _MODULES for method in (*letting_in, *knowing, *trusting))


def _written_in(method: Callable[..., Any]) -> str | None:
    """Return the module that holds a method's code; `functools.wraps` makes ``__module__`` say another one."""
    return getattr(method, "__globals__", {}).get("__name__")
