"""HTTP requests to one notebook server, over TCP or its Unix socket, with its token, over kept connections."""

from __future__ import annotations

import socket
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote, urlencode, urlsplit

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, ReadTimeoutError

from superduper_nb.errors import DeadlineError, InvalidInputError, ServerUnavailableError

__all__ = ["Answer", "Transport", "is_loopback"]

_CONNECT_S: Final = 5.0
_PART: Final = 64 * 1024
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_RETRIES: Final = urllib3.Retry(connect=2, read=False, redirect=0, status=0, other=0, backoff_factor=0.1)
"""Only what surely did not reach the server is sent again."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server answered.

    Attributes
    ----------
    status : int
        HTTP status.
    headers : mapping
        Header fields; names in any case.
    body : bytes
        The whole body.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport:
    """Connections to one notebook server. Thread-safe.

    Parameters
    ----------
    url : str
        Base URL of the server, ``http://``, ``https://`` or ``http+unix://%2Fpath%2Fto.sock/``.
    token : str, optional
        Sent with each request; never shown.
    connections : int, default 8
        Connections kept open.
    """

    def __init__(self, url: str, token: str | None = None, *, connections: int = 8) -> None:
        self.url = url.rstrip("/") + "/"
        self._headers = {"Authorization": f"token {token}"} if token else {}
        self._path = urlsplit(self.url).path
        self._pool = _pool(self.url, connections)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
    ) -> Answer:
        """Send a request and read its whole answer, whatever its status.

        Parameters
        ----------
        path : str
            Below the base URL, quoted.
        timeout : float
            Seconds to wait for the answer.

        Raises
        ------
        ServerUnavailableError
            Nobody answers at the URL.
        DeadlineError
            No answer in time.
        """
        answer = self._open(method, path, timeout, query=query, body=body, headers=headers)
        return Answer(answer.status, answer.headers, answer.data)

    def stream(
        self, method: str, path: str, *, body: bytes, headers: Mapping[str, str], timeout: float
    ) -> Generator[Answer]:
        """Send a request and yield its answer in parts as they come, each at most `timeout` seconds after the last.

        When iteration ends early, the connection is closed, so that the server knows. Raises as `request` does.
        """
        answer = self._open(method, path, timeout, body=body, headers=headers, preload_content=False)
        try:
            with self._meant(path, timeout):
                for part in answer.stream(_PART, decode_content=False):
                    yield Answer(answer.status, answer.headers, part)
        finally:
            answer.close()

    def _open(self, method: str, path: str, timeout: float, **options: Any) -> urllib3.BaseHTTPResponse:
        query: Mapping[str, str] | None = options.pop("query", None)
        with self._meant(path, timeout):
            return self._pool.urlopen(
                method,
                self._path + path + (f"?{urlencode(query)}" if query else ""),
                headers={**self._headers, **(options.pop("headers") or {})},
                timeout=urllib3.Timeout(connect=min(_CONNECT_S, timeout), read=timeout),
                retries=_RETRIES,
                redirect=False,
                **options,
            )

    @contextmanager
    def _meant(self, path: str, timeout: float) -> Iterator[None]:
        """Raise our own errors in the place of urllib3's."""
        try:
            yield
        except ReadTimeoutError:
            raise DeadlineError(f"The notebook server at {self.url} did not answer {path} in {timeout:g} s.") from None
        except (HTTPError, OSError) as error:
            raise ServerUnavailableError(
                f"No answer from a notebook server at {self.url} ({_root(error)}): is it running? Then connect again."
            ) from None

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()


def is_loopback(url: str) -> bool:
    """Return whether a URL leads to this machine without leaving it."""
    parts = urlsplit(url)
    return parts.scheme == "http+unix" or parts.hostname in _LOOPBACK


class _UnixConnection(HTTPConnection):
    def __init__(self, host: str, *args: Any, socket_path: str, **options: Any) -> None:
        super().__init__(host, *args, **options)
        self._socket_path = socket_path

    def _new_conn(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_CONNECT_S)
        connection.connect(self._socket_path)
        return connection


class _UnixPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _UnixConnection


def _pool(url: str, connections: int) -> urllib3.HTTPConnectionPool:
    parts = urlsplit(url)
    options: dict[str, Any] = {"maxsize": connections, "block": False}
    if parts.scheme == "http+unix" and parts.hostname:
        path = unquote(parts.netloc)
        return _UnixPool("localhost", socket_path=path, **options)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInputError(
            f"{url!r} is no URL of a notebook server: write http://host:port/ or https://host:port/."
        )
    if parts.scheme == "http":
        return urllib3.HTTPConnectionPool(parts.hostname, parts.port, **options)
    if is_loopback(url):
        # A self-signed certificate is the rule here, and without it the address would be plain http.
        return urllib3.HTTPSConnectionPool(parts.hostname, parts.port, cert_reqs="CERT_NONE", **options)
    return urllib3.HTTPSConnectionPool(parts.hostname, parts.port, **options)


def _root(error: BaseException) -> str:
    """Name what happened at the bottom; urllib3 wraps errors several times, and its texts repeat the URL."""
    reason: BaseException | None = error
    while reason is not None:
        if isinstance(reason, OSError) and reason.strerror:
            return reason.strerror
        reason = getattr(reason, "reason", None) or reason.__cause__ or reason.__context__
    return type(error).__name__
