"""Fetch the content that a document names by URL: safely, within a time and a size, or with a reason why not.

``http`` and ``https`` from public addresses; ``file`` below allowed folders; ``s3``, ``gs`` and ``az`` below allowed
places, by fsspec where it is installed.
"""

from __future__ import annotations

from superduper_nb.documents.download_files import fetch_cloud, fetch_file
from superduper_nb.documents.download_policy import CLOUD_SCHEMES, DownloadError, DownloadPolicy, check_url

__all__ = ["DownloadError", "DownloadPolicy", "check_url", "fetch"]


def fetch(url: str, *, policy: DownloadPolicy) -> bytes:
    """Return the bytes that a URL holds. Tries once: what to try again, and when, the error says.

    Parameters
    ----------
    url : str
        What to fetch.
    policy : DownloadPolicy
        What may be fetched, and how much.

    Raises
    ------
    DownloadError
        Not allowed, not there, too large or too slow; ``kind``, ``transient`` and ``retry_after`` say what to do.
    """
    parts = check_url(url, policy=policy)
    if parts.scheme == "file":
        return fetch_file(parts, policy=policy)
    if parts.scheme in CLOUD_SCHEMES:
        return fetch_cloud(parts, policy=policy)
    from superduper_nb.documents.download_web import fetch_web  # requests: 50 ms that most processes never need

    return fetch_web(parts, policy=policy)
