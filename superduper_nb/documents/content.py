"""Content: typed bytes inside a document, there already or still to be fetched.

::

    {"_content": {"type": "image", "bytes": b"…"}}                        encoded
    {"_content": {"type": "image", "url": "https://…"}}                   to be fetched by a job: read as Pending
    {"_content": {"type": "image", "url": "https://…", "error": "…"}}     fetching failed: read as Failed

Bytes without a type are of type ``bytes``. A placeholder keeps what was stored, so writing a document back as it was
read changes nothing.

Whoever fetches notes as ``source`` which URL the bytes, or the error, are of. So a URL that any program changes later
makes them worthless by itself: the content is to be fetched again, and until then it is not there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from superduper_nb.documents.paths import join_path

__all__ = [
    "CONTENT",
    "Failed",
    "Pending",
    "changed_content",
    "find_content",
    "find_downloads",
    "is_content",
    "pending_content",
    "public_url",
    "settled",
]

CONTENT: Final = "_content"
"""The field that marks typed bytes."""


def public_url(url: str) -> str:
    """Return a URL as it may be shown: no user name or password, no query (signed links carry their secret there)."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "an unreadable URL"
    where = (
        f"{parts.scheme}://{host}{parts.path}"
        if host or "://" in url
        else parts._replace(query="", fragment="").geturl()
    )
    return where[:200] + ("…" if len(where) > 200 else "") + ("?…" if parts.query else "")


@dataclass(frozen=True)
class Pending:
    """Stands in a document for content that is not downloaded yet. It is false: ``if document["image"]:`` works.

    Attributes
    ----------
    url : str
        Where the content will be fetched.
    """

    url: str
    content: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return f"<Pending {public_url(self.url)}>"

    @property
    def stored(self) -> dict[str, Any]:
        """What MongoDB holds in this place."""
        return {CONTENT: dict(self.content) or {"url": self.url}}


@dataclass(frozen=True)
class Failed:
    """Stands in a document for content that could not be downloaded or decoded. It is false.

    Attributes
    ----------
    url : str or None
        Where the content was to be fetched; None if it was given as bytes.
    reason : str
        Why it is not there.
    """

    url: str | None
    reason: str
    content: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        where = f" {public_url(self.url)}" if self.url else ""
        return f"<Failed{where}: {self.reason.removeprefix(f'{where[1:]}: ')}>"

    @property
    def stored(self) -> dict[str, Any]:
        """What MongoDB holds in this place."""
        return {CONTENT: dict(self.content) or {"url": self.url, "error": self.reason}}


def is_content(value: Mapping[str, Any]) -> bool:
    """Say whether a sub-document is content as stored (and not a user's own field of that name)."""
    if len(value) != 1 or CONTENT not in value:
        return False
    inner = value[CONTENT]
    return isinstance(inner, Mapping) and (isinstance(inner.get("bytes"), bytes) or isinstance(inner.get("url"), str))


def settled(content: Mapping[str, Any], what: str) -> Any:
    """Return the ``bytes``, or the ``error``, of content; None where it has none, or one that is of another URL."""
    url = content.get("url")
    return content.get(what) if url is None or content.get("source", url) == url else None


def find_content(document: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield ``(dotted path, content)`` for all content of a document that has a URL, in lists too.

    Content below a field that no path can name (one with a dot, say) is left out: MongoDB could not update it.
    """
    for parts, content in _walk(document, ()):
        path = join_path(parts)
        if path is not None and "url" in content:
            yield path, content


def find_downloads(document: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield ``(dotted path, content)`` for what a document still has to fetch; what failed before is left out."""
    return ((path, content) for path, content in find_content(document) if _is_open(content))


def _is_open(content: Mapping[str, Any]) -> bool:
    return "url" in content and settled(content, "bytes") is None and settled(content, "error") is None


def changed_content(update: Any, *, plain: bool = False) -> set[str] | None:
    """Return the fields in which an update may leave something to be fetched; None: it may be anywhere.

    Parameters
    ----------
    update : mapping or list
        As MongoDB takes it: operators with fields, or a pipeline.
    plain : bool, default False
        None of its values holds content; a path may lead into some.
    """
    if not isinstance(update, Mapping):
        return None if _mentions(update) else set()
    paths: set[str] = set()
    for fields in update.values():
        for path, value in fields.items() if isinstance(fields, Mapping) else ():
            head, inside, _ = f".{path}.".partition(f".{CONTENT}.")
            if inside or (not plain and any(_is_open(content) for _, content in _walk(value, ()))):
                paths.add(head.strip("."))
    return paths


def pending_content(key: str) -> dict[str, Any]:
    """Return a filter for documents of which something at a key, or in a list there, may still have to be fetched."""
    there, missing = {"$exists": True}, {"$exists": False}
    content = {f"{CONTENT}.url": there, f"{CONTENT}.bytes": missing, f"{CONTENT}.error": missing}
    return {"$or": [{f"{key}.{path}": test for path, test in content.items()}, {key: {"$elemMatch": content}}]}


def _mentions(value: Any) -> bool:
    if isinstance(value, str):
        return CONTENT in value
    parts: Iterable[Any] = value if isinstance(value, (list, tuple)) else ()
    if isinstance(value, Mapping):
        parts = (*value.keys(), *value.values())
    return any(map(_mentions, parts))


def _walk(value: Any, parts: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Mapping[str, Any]]]:
    if isinstance(value, Mapping):
        if is_content(value):
            yield parts, value[CONTENT]
            return
        for key, item in value.items():
            yield from _walk(item, (*parts, key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _walk(item, (*parts, index))
