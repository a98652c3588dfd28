"""Thumbnails: PIL images, drawn small and encoded anew, within a budget of bytes."""

from __future__ import annotations

import base64
import io
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeGuard

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Budget", "Picture", "is_picture", "thumbnail"]

SIDE: Final = 192
"""Longest side of a thumbnail in pixels: sharp at half that size on a dense screen."""

LARGEST: Final = 24_000
"""Most bytes of one thumbnail."""


@dataclass(slots=True)
class Budget:
    """Bytes that the media of one output may still take."""

    left: int

    def take(self, size: int) -> bool:
        """Reserve `size` bytes; False where they are not left."""
        if size > self.left:
            return False
        self.left -= size
        return True


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture to show; `uri` is empty where there was no room for it, or it could not be drawn."""

    uri: str
    width: int
    height: int
    alt: str


def is_picture(value: Any) -> TypeGuard[Image]:
    """Tell whether `value` is a PIL image; Pillow is not imported for the question."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(value, module.Image)


def thumbnail(image: Image, *, name: str, budget: Budget) -> Picture:
    """Draw `image` small.

    Only pixels are kept: the bytes are encoded here, so neither metadata nor a hostile file passes through.
    """
    width, height = image.size
    alt = f"{name}: image, {width} × {height} pixels"
    try:
        kind, data = _encode(image)
    except Exception as error:  # decoders raise anything on damaged files, and a view must not fail
        return Picture("", width, height, f"{alt}, can't be drawn ({type(error).__name__})")
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    if len(data) > LARGEST or not budget.take(len(uri)):
        return Picture("", width, height, f"{alt}, too large to be shown here")
    return Picture(uri, width, height, alt)


def _encode(image: Image) -> tuple[str, bytes]:
    from PIL.Image import Quantize, Resampling

    transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    small = image.convert("RGBA" if transparent else "RGB")
    small.thumbnail((SIDE, SIDE), Resampling.LANCZOS)
    small.info.clear()  # Pillow would write colour profiles and comments back
    if transparent:
        return "png", _saved(small.quantize(128, method=Quantize.FASTOCTREE), "PNG", optimize=True)
    return "jpeg", _saved(small, "JPEG", quality=82, optimize=True)


def _saved(image: Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
