"""What may be downloaded, and what is said when it is not.

Whoever can write a document can name a URL, so a URL is not a wish of the user's: nothing is read from this machine,
its network or its cloud accounts unless the policy names the place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, Literal
from urllib.parse import SplitResult, urlsplit

from superduper_nb.documents.content import public_url
from superduper_nb.errors import InvalidInputError, ServiceError

__all__ = [
    "CLOUD_SCHEMES",
    "WEB_SCHEMES",
    "DownloadError",
    "DownloadPolicy",
    "Kind",
    "check_form",
    "check_url",
    "check_web_url",
]

WEB_SCHEMES: Final = ("http", "https")
CLOUD_SCHEMES: Final = ("s3", "gs", "az")

_MAX_URL: Final = 8192
_UNSAFE: Final = re.compile(r"[\x00-\x20\x7f\\]")  # parsers disagree about these

Kind = Literal[
    "url",
    "scheme",
    "address",
    "redirect",
    "status",
    "encoding",
    "size",
    "empty",
    "time",
    "network",
    "tls",
    "file",
    "cloud",
]


class DownloadError(ServiceError):
    """A URL could not be fetched. The message holds neither passwords nor the query of the URL.

    Attributes
    ----------
    kind : str
        What was wrong: ``url``, ``scheme``, ``address``, ``redirect``, ``status``, ``encoding``, ``size``, ``empty``,
        ``time``, ``network``, ``tls``, ``file`` or ``cloud``.
    transient : bool
        Trying again later may help.
    retry_after : float or None
        Seconds after which the server asked to be tried again (ten minutes at most).
    """

    code: ClassVar[str] = "download"

    def __init__(self, kind: Kind, message: str, *, transient: bool = False, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.transient = transient
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[object, ...]:
        # Crosses process borders when a worker raises it; exceptions pickle by their positional arguments only.
        return _restore, (self.kind, str(self), self.transient, self.retry_after)


def _restore(kind: Kind, message: str, transient: bool, retry_after: float | None) -> DownloadError:
    return DownloadError(kind, message, transient=transient, retry_after=retry_after)


@dataclass(frozen=True, kw_only=True)
class DownloadPolicy:
    """What may be fetched, and how much.

    Attributes
    ----------
    roots : tuple of str
        Folders (``/data/images``) below which ``file://`` URLs are read, and cloud places (``s3://bucket/photos``)
        below which ``s3``, ``gs`` and ``az`` URLs are. None by default.
    trusted_hosts : frozenset of str
        ``host`` or ``host:port`` that are fetched from although their address is private, as an object store of your
        own.
    headers : mapping of str to mapping
        For each ``host`` or ``host:port``, headers (a login, say) that are sent to it and to no other.
    ca_file : str, optional
        Certificates to trust in place of the usual ones (a company's own, say). Environment variables are not asked.
    connect_timeout, read_timeout, total_timeout : float
        Seconds to connect, to wait for the next bytes, and in all.
    max_bytes : int
        Larger content is refused, after unpacking too.
    max_redirects : int
        How many redirects are followed.
    user_agent : str
        How the downloader introduces itself.
    at_once, per_host : int
        How many are fetched at one time by one part of a job, in all and from one host.
    tries : int
        How often something is tried whose failure may pass.
    """

    roots: tuple[str, ...] = ()
    trusted_hosts: frozenset[str] = frozenset()
    headers: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    ca_file: str | None = None
    connect_timeout: float = 5.0
    read_timeout: float = 10.0
    total_timeout: float = 60.0
    max_bytes: int = 64 * 2**20
    max_redirects: int = 5
    user_agent: str = "superduper-nb"
    at_once: int = 16
    per_host: int = 4
    tries: int = 3

    def __post_init__(self) -> None:
        for root in self.roots:
            scheme, cloud, place = root.partition("://")
            if not (Path(root).is_absolute() or (cloud and scheme in CLOUD_SCHEMES and place.strip("/"))):
                raise InvalidInputError(
                    f"roots: {root!r} is neither an absolute folder nor a place such as 's3://bucket/photos'."
                )
        for host in self.trusted_hosts:
            if not host or host != host.lower() or "/" in host or "@" in host:
                raise InvalidInputError(f"trusted_hosts: {host!r} is not a 'host' or 'host:port' in lower case.")
        for name in ("connect_timeout", "read_timeout", "total_timeout", "max_bytes", "at_once", "per_host", "tries"):
            if not getattr(self, name) > 0:
                raise InvalidInputError(f"{name} must be more than 0, not {getattr(self, name)!r}.")

    @property
    def folders(self) -> tuple[Path, ...]:
        """The roots that are folders."""
        return tuple(Path(root) for root in self.roots if "://" not in root)

    @property
    def cloud_places(self) -> tuple[str, ...]:
        """The roots that are in a cloud, each ending in a slash."""
        return tuple(root.rstrip("/") + "/" for root in self.roots if "://" in root)


def check_url(url: object, *, policy: DownloadPolicy) -> SplitResult:
    """Return the parts of a URL that the policy lets us try; open nothing.

    Raises
    ------
    DownloadError
        It is not a URL, or of a scheme that the policy does not allow.
    """
    parts = _split(url)
    if parts.scheme in WEB_SCHEMES:
        return _check_host(parts)
    if parts.scheme == "file" and policy.folders:
        return parts
    if parts.scheme in CLOUD_SCHEMES and policy.cloud_places:
        return parts
    raise _scheme_error(parts, policy)


def check_form(url: object) -> None:
    """Raise where no policy at all would let us try a URL: so it can be refused when it is written."""
    parts = _split(url)
    known = (*WEB_SCHEMES, "file", *CLOUD_SCHEMES)
    if parts.scheme not in known:
        raise DownloadError(
            "scheme", f"{public_url(parts.geturl())}: {parts.scheme!r} is never fetched; known: {', '.join(known)}."
        )


def check_web_url(url: object) -> SplitResult:
    """Return the parts of a URL that a redirect may lead to: http(s), whatever else the policy allows."""
    parts = _split(url)
    if parts.scheme not in WEB_SCHEMES:
        raise DownloadError(
            "scheme", f"{public_url(parts.geturl())}: a redirect leads to {parts.scheme!r}; only http(s) is followed."
        )
    return _check_host(parts)


def _split(url: object) -> SplitResult:
    if not isinstance(url, str):
        raise DownloadError("url", f"A URL is a string, not {type(url).__name__}.")
    if not url or len(url) > _MAX_URL:
        raise DownloadError("url", f"A URL has 1 to {_MAX_URL} characters; this one has {len(url)}.")
    if _UNSAFE.search(url):
        raise DownloadError(
            "url", f"{public_url(url)!r}: spaces, control characters and backslashes must be percent-encoded in a URL."
        )
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number
    except ValueError as error:
        raise DownloadError("url", f"{public_url(url)!r} is not a URL: {error}") from None
    if not parts.scheme:
        raise DownloadError("url", f"{public_url(url)!r} is not a URL: it lacks a scheme such as https://.")
    return parts


def _check_host(parts: SplitResult) -> SplitResult:
    if not parts.hostname:
        raise DownloadError("url", f"{public_url(parts.geturl())!r} is not a URL: it names no host.")
    if parts.username is not None or parts.password is not None:
        raise DownloadError(
            "url",
            f"{public_url(parts.geturl())}: logins are not taken from URLs, but from downloads.headers in config.json.",
        )
    return parts


def _scheme_error(parts: SplitResult, policy: DownloadPolicy) -> DownloadError:
    allowed = [*WEB_SCHEMES, *(["file"] if policy.folders else []), *(CLOUD_SCHEMES if policy.cloud_places else [])]
    way_out = ""
    if parts.scheme in (*CLOUD_SCHEMES, "file") and parts.scheme not in allowed:
        way_out = " Name the folders or buckets that may be read in downloads.roots of config.json."
    return DownloadError(
        "scheme",
        f"{public_url(parts.geturl())}: {parts.scheme!r} is not fetched; allowed here: {', '.join(allowed)}.{way_out}",
    )
