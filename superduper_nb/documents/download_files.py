"""Read ``file://`` URLs below folders, and cloud URLs below places, that the policy names."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote

from superduper_nb.documents.content import public_url
from superduper_nb.documents.download_policy import DownloadError, DownloadPolicy

__all__ = ["fetch_cloud", "fetch_file"]

_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs"}


def fetch_file(parts: SplitResult, *, policy: DownloadPolicy) -> bytes:
    """Return what a file below an allowed folder holds."""
    root, inside = _contained(_local_path(parts), policy)
    try:
        return _read(root, inside, policy.max_bytes)
    except OSError as error:
        raise DownloadError("file", f"{public_url(parts.geturl())}: {error.strerror or error}.") from None


def _local_path(parts: SplitResult) -> Path:
    shown = public_url(parts.geturl())
    path = unquote(parts.path)
    if parts.netloc or parts.query or parts.fragment or not path.startswith("/") or "\0" in path:
        raise DownloadError("url", f"{shown}: a file is written file:///folder/name, without host, '?' or '#'.")
    return Path(path)


def _contained(path: Path, policy: DownloadPolicy) -> tuple[Path, Path]:
    """Return the allowed folder that really holds a path, and the path below it, both without links."""
    real = Path(os.path.realpath(path))
    for folder in policy.folders:
        root = Path(os.path.realpath(folder))
        if real.is_relative_to(root):
            return root, real.relative_to(root)
    raise DownloadError(
        "file", f"file://{path}: it is not below a folder that may be read (downloads.roots in config.json)."
    )


def _read(root: Path, inside: Path, limit: int) -> bytes:
    """Walk down from the folder, following no link: a name replaced by one since it was checked leads nowhere."""
    with ExitStack() as stack:
        at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, at)
        for name in inside.parts[:-1]:
            at = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            stack.callback(os.close, at)
        # Not blocking: a named pipe would wait for its writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = stack.enter_context(os.fdopen(os.open(inside.name or ".", flags, dir_fd=at), "rb"))
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise DownloadError("file", f"file://{root / inside}: not a regular file.")
        return _checked(file.read(limit + 1), f"file://{root / inside}", limit)


def fetch_cloud(parts: SplitResult, *, policy: DownloadPolicy) -> bytes:
    """Return what an object below an allowed place of a cloud store holds, with the credentials of this process."""
    url = parts.geturl()
    shown = public_url(url)
    if not url.startswith(policy.cloud_places) or {".", ".."} & set(url.split("/")):
        raise DownloadError(
            "cloud", f"{shown}: it is not below a place that may be read (downloads.roots in config.json)."
        )
    data = _in_time(lambda: _read_object(parts, policy.max_bytes), policy.total_timeout, shown)
    return _checked(data, shown, policy.max_bytes)


def _read_object(parts: SplitResult, limit: int) -> bytes:
    shown = public_url(parts.geturl())
    try:
        import fsspec

        data: bytes = fsspec.filesystem(parts.scheme).cat_file(parts.geturl(), start=0, end=limit + 1)
        return data
    except ImportError:
        raise DownloadError(
            "cloud", f"{shown}: {parts.scheme}:// needs a package: pip install {_PACKAGES[parts.scheme]}"
        ) from None
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise DownloadError("cloud", f"{shown}: {type(error).__name__}.") from None
    except Exception as error:  # each store has its own; their texts may quote credentials
        raise DownloadError("cloud", f"{shown}: {type(error).__name__}.", transient=True) from None


def _in_time(read: Callable[[], bytes], seconds: float, shown: str) -> bytes:
    """Run a read that knows no deadline of its own; past the deadline its thread is left behind."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(read())
        except DownloadError as error:
            result.append(error)

    thread = threading.Thread(target=run, name="superduper-cloud-read", daemon=True)
    thread.start()
    thread.join(seconds)
    if not result:
        raise DownloadError("time", f"{shown}: not done within {seconds:g} s.", transient=True)
    if isinstance(result[0], DownloadError):
        raise result[0]
    data: bytes = result[0]
    return data


def _checked(data: bytes, shown: str, limit: int) -> bytes:
    if len(data) > limit:
        raise DownloadError("size", f"{shown}: more than the {limit} bytes that are taken.")
    if not data:
        raise DownloadError("empty", f"{shown}: it holds no bytes.")
    return data
