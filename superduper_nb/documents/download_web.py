"""Fetch from the web without becoming anybody's way into the network.

``requests-hardened`` looks a name up once, refuses private addresses and connects to the very address it checked, at
each redirect anew. Added here: one deadline for everything from the connection on (the time-outs of requests bound
single reads, so a server that sends a byte now and then holds one for ever), a cap on the bytes, packed and unpacked,
and errors that say whether trying again makes sense. The name look-up is bounded by the system's resolver.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from io import BytesIO
from typing import Any, Final, Self
from urllib.parse import SplitResult, urljoin

import requests
from requests.adapters import HTTPAdapter
from requests.utils import requote_uri
from requests_hardened import Config, HTTPSession
from requests_hardened.ip_filter import InvalidIPAddress
from requests_hardened.ip_filter_adapter import IPFilterAdapter
from urllib3.util.ssl_match_hostname import CertificateError

from superduper_nb.documents.content import public_url
from superduper_nb.documents.download_policy import WEB_SCHEMES, DownloadError, DownloadPolicy, check_web_url

__all__ = ["fetch_web"]

_CHUNK: Final = 65536
_MAX_RETRY_AFTER: Final = 600.0
_TRANSIENT: Final = frozenset({408, 425, 429})
_ENCODINGS: Final = frozenset({"", "identity", "gzip", "x-gzip", "deflate"})
_IPV4_SPELLINGS: Final = (ipaddress.ip_network("::/96"), ipaddress.ip_network("::ffff:0:0:0/96"))
"""IPv4 addresses as IPv6 (compatible, translated) that requests-hardened lets pass."""


def fetch_web(parts: SplitResult, *, policy: DownloadPolicy) -> bytes:
    """Return what an http(s) URL holds."""
    url = parts.geturl()
    with _Deadline(policy.total_timeout) as deadline, _session(policy, deadline) as session:
        for _ in range(policy.max_redirects + 1):
            with _errors(url, deadline), _get(session, url, policy) as response:
                target = session.get_redirect_target(response)
                if target is None:
                    return _body(response, url, policy, deadline)
            url = _next_hop(url, target)
    raise DownloadError("redirect", f"{public_url(parts.geturl())}: more than {policy.max_redirects} redirects.")


def _get(session: requests.Session, url: str, policy: DownloadPolicy) -> requests.Response:
    headers = policy.headers.get(check_web_url(url).netloc.lower(), {})
    timeout = (policy.connect_timeout, policy.read_timeout)
    return session.get(url, headers=dict(headers), stream=True, allow_redirects=False, timeout=timeout)


def _next_hop(url: str, target: str) -> str:
    parts = check_web_url(urljoin(url, requote_uri(target)))
    if url.lower().startswith("https:") and parts.scheme == "http":
        raise DownloadError(
            "redirect", f"{public_url(url)}: a redirect leads from https to http ({public_url(parts.geturl())})."
        )
    return parts.geturl()


def _body(response: requests.Response, url: str, policy: DownloadPolicy, deadline: _Deadline) -> bytes:
    _check_status(response, url)
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in _ENCODINGS:
        raise DownloadError(
            "encoding", f"{public_url(url)}: sent as {encoding!r}, though only plain bytes or gzip are taken."
        )
    announced = response.headers.get("Content-Length", "")
    if announced.isdecimal() and int(announced) > policy.max_bytes:
        raise _too_large(url, policy, f"{announced} bytes")
    buffer = BytesIO()  # its getvalue() is the one way to the bytes that copies nothing
    for chunk in response.iter_content(_CHUNK):
        if buffer.tell() + len(chunk) > policy.max_bytes:
            raise _too_large(url, policy, "more")
        buffer.write(chunk)
    if deadline.over:  # a cut connection looks like the end where no length was announced
        raise _too_slow(url)
    if not buffer.tell():
        raise DownloadError("empty", f"{public_url(url)}: the answer holds no bytes.")
    return buffer.getvalue()


def _check_status(response: requests.Response, url: str) -> None:
    status = response.status_code
    if 200 <= status < 300:
        return
    transient = status in _TRANSIENT or status >= 500
    retry_after = _retry_after(response.headers.get("Retry-After", "")) if transient else None
    raise DownloadError(
        "status", f"{public_url(url)}: the server answered {status}.", transient=transient, retry_after=retry_after
    )


def _retry_after(value: str) -> float | None:
    """Read the header's seconds or date; None where it says nothing sensible."""
    if value.strip().isdecimal():
        return min(float(value), _MAX_RETRY_AFTER)
    try:
        wait = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return min(max(wait, 0.0), _MAX_RETRY_AFTER)


def _too_large(url: str, policy: DownloadPolicy, size: str) -> DownloadError:
    return DownloadError("size", f"{public_url(url)}: {size} where at most {policy.max_bytes} bytes are taken.")


def _too_slow(url: str) -> DownloadError:
    return DownloadError("time", f"{public_url(url)}: not done within the total time allowed.", transient=True)


@contextmanager
def _errors(url: str, deadline: _Deadline) -> Iterator[None]:
    """Say what went wrong in our words; those of requests quote the whole URL."""
    try:
        yield
    except DownloadError:
        raise
    except Exception as error:
        if deadline.over:
            raise _too_slow(url) from None
        raise _translated(error, public_url(url)) from None


def _translated(error: Exception, shown: str) -> DownloadError:
    match error:
        case InvalidIPAddress():
            return DownloadError(
                "address",
                f"{shown}: its address is not public. To trust it: downloads.trusted_hosts in config.json.",
            )
        case requests.exceptions.SSLError():
            return DownloadError("tls", f"{shown}: no secure connection ({_reason(error)}).")
        case requests.exceptions.Timeout():
            return DownloadError("time", f"{shown}: the server does not answer in time.", transient=True)
        case requests.exceptions.ContentDecodingError():
            return DownloadError("encoding", f"{shown}: the answer can't be unpacked.")
        case requests.exceptions.ChunkedEncodingError():
            return DownloadError("network", f"{shown}: the connection ended before the content did.", transient=True)
        case requests.exceptions.ConnectionError():
            return DownloadError("network", f"{shown}: can't connect, or the connection broke.", transient=True)
        case (
            ValueError() | AssertionError()
        ):  # InvalidURL, InvalidSchema, InvalidHeader, UnicodeError of odd host names
            return DownloadError("url", f"{shown} is not a URL that can be fetched ({type(error).__name__}).")
        case OSError():
            return DownloadError("network", f"{shown}: {type(error).__name__}.", transient=True)
    raise error


def _reason(error: BaseException) -> str:
    """Find the certificate's fault in a chain of errors."""
    inner: Any = error
    for _ in range(4):
        if isinstance(inner, ssl.SSLCertVerificationError):
            return inner.verify_message
        if isinstance(inner, CertificateError):  # another host's
            return str(inner)
        inner = getattr(inner, "reason", None) or (inner.args[0] if getattr(inner, "args", None) else None)
    return type(error).__name__


class _Deadline:
    """Cuts every connection of a fetch when its time is over, in whatever phase it is (TLS, header, body)."""

    def __init__(self, seconds: float) -> None:
        self.over = False
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._timer.cancel()
        with self._lock:
            for sock in self._sockets:
                sock.close()
            self._sockets.clear()

    def watch(self, sock: socket.socket) -> None:
        """Cut this connection, too. Watched by a duplicate: TLS takes over the socket itself."""
        with self._lock:
            self._sockets.append(sock.dup())
        if self.over:
            self._cut()

    def _cut(self) -> None:
        with self._lock:
            self.over = True
            for sock in self._sockets:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)


class _Watched(HTTPAdapter):
    """Tells the deadline about every connection."""

    def __init__(self, deadline: _Deadline, **options: Any) -> None:
        super().__init__(**options)
        self._deadline = deadline

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool = super().get_connection_with_tls_context(*args, **kwargs)
        pool.ConnectionCls = _watched(type(pool).ConnectionCls, self._deadline)
        return pool


def _watched(base: Any, deadline: _Deadline) -> Any:
    """Return the connection class, plain or TLS, of which each connection has a deadline."""

    class Connection(base):  # type: ignore[misc]  # chosen at run time
        def _new_conn(self) -> socket.socket:
            sock: socket.socket = super()._new_conn()
            deadline.watch(sock)
            return sock

    return Connection


class _Public(_Watched, IPFilterAdapter):  # type: ignore[misc]  # requests-hardened has no type information
    """Connects to public addresses only."""

    def build_connection_pool_key_attributes(self, *args: Any, **kwargs: Any) -> Any:
        host, pool = super().build_connection_pool_key_attributes(*args, **kwargs)
        address = ipaddress.ip_address(host["host"].strip("[]"))
        if not address.is_global or address.is_multicast or any(address in net for net in _IPV4_SPELLINGS):
            raise InvalidIPAddress(address)
        return host, pool


def _session(policy: DownloadPolicy, deadline: _Deadline) -> requests.Session:
    config = Config(
        ip_filter_enable=True,
        ip_filter_allow_loopback_ips=False,
        never_redirect=True,
        default_timeout=(policy.connect_timeout, policy.read_timeout),
        user_agent_override=policy.user_agent,
    )
    session: requests.Session = HTTPSession(config)
    session.trust_env = False  # no proxies, no .netrc
    session.verify = policy.ca_file or True
    session.headers["Accept-Encoding"] = "identity"
    session.adapters.clear()
    for scheme in WEB_SCHEMES:
        session.mount(f"{scheme}://", _Public(deadline, is_https_proto=scheme == "https"))
        for host in policy.trusted_hosts:
            session.mount(f"{scheme}://{host}/", _Watched(deadline))
    return session
