"""What bytes are, judged by how they begin."""

from __future__ import annotations

from typing import Final

__all__ = ["media_kind"]

_BEGINNINGS: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0, b"\x89PNG\r\n", "PNG picture"),
    (0, b"\xff\xd8\xff", "JPEG picture"),
    (0, b"GIF8", "GIF picture"),
    (8, b"WEBP", "WebP picture"),
    (8, b"WAVE", "WAV sound"),
    (0, b"ID3", "MP3 sound"),
    (0, b"\xff\xfb", "MP3 sound"),
    (0, b"fLaC", "FLAC sound"),
    (0, b"OggS", "Ogg sound or video"),
    (4, b"ftyp", "MP4 video"),
    (0, b"\x1aE\xdf\xa3", "WebM video"),
    (8, b"AVI ", "AVI video"),
    (0, b"%PDF-", "PDF"),
)


def media_kind(data: bytes | bytearray | memoryview) -> str:
    """Return what `data` is, such as ``"MP4 video"``; empty where its beginning says nothing."""
    head = bytes(data[:16])
    return next((kind for at, begin, kind in _BEGINNINGS if head.startswith(begin, at)), "")
