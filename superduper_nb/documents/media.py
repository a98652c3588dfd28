"""Pictures and sounds, stored without loss and read with suspicion (they may come from any URL)."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from superduper_nb.errors import InvalidInputError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

__all__ = ["Audio", "AudioClip", "Image"]

_READABLE: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_PNG_MODES: Final = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
_TIFF_MODES: Final = frozenset({"I", "F", "CMYK"})
"""What PNG can't hold: integers of 32 bits, floats, ink."""

_FORMATS: Final = {np.dtype(name): tag for name, tag in (("u1", 1), ("<i2", 1), ("<i4", 1), ("<f4", 3), ("<f8", 3))}
_EXTENSIBLE: Final = 0xFFFE


class Image:
    """PIL images, stored as PNG (as TIFF in the modes that PNG lacks), every pixel kept.

    Reads PNG, JPEG, WebP, GIF, BMP and TIFF, the first frame of an animation, and nothing else.

    Parameters
    ----------
    max_pixels : int, default 50 million
        Larger pictures are refused, before they are unpacked.
    """

    types = ("PIL.Image.Image",)

    def __init__(self, *, max_pixels: int = 50_000_000) -> None:
        self.max_pixels = max_pixels

    def encode(self, x: PILImage) -> bytes:
        """Return the image as bytes."""
        self._check_size(x)
        file = io.BytesIO()
        if x.mode in _PNG_MODES:
            x.save(file, "PNG")
        elif x.mode in _TIFF_MODES:
            x.save(file, "TIFF", compression="tiff_adobe_deflate")
        else:
            raise InvalidInputError(
                f"Images of mode {x.mode} can't be stored without loss: use .convert('RGBA') first."
            )
        return file.getvalue()

    def decode(self, data: bytes) -> PILImage:
        """Return the image, fully loaded and bound to no file."""
        import PIL.Image

        try:
            with PIL.Image.open(io.BytesIO(data), formats=_READABLE) as image:
                self._check_size(image)
                return image.copy()
        except PIL.UnidentifiedImageError:
            raise InvalidInputError(
                f"These {len(data)} bytes are no image of a known kind ({', '.join(_READABLE)})."
            ) from None
        except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
            raise InvalidInputError(f"This image is too large: {error}") from None
        except (OSError, ValueError, SyntaxError, EOFError, struct.error) as error:
            if isinstance(error, InvalidInputError):
                raise
            raise InvalidInputError(f"This image is damaged: {error}") from error

    def _check_size(self, image: PILImage) -> None:
        # Lower than the size at which Pillow warns, so that its warning can't pass as one.
        if image.width * image.height > self.max_pixels:
            raise InvalidInputError(
                f"This image has {image.width} x {image.height} pixels; at most {self.max_pixels} are taken. "
                "Make it smaller, or register a type of your own: Image(max_pixels=…)."
            )


@dataclass(frozen=True, eq=False)
class AudioClip:
    """A sound: samples and their rate.

    Attributes
    ----------
    samples : numpy.ndarray
        ``(frames,)`` for one channel, ``(frames, channels)`` for more; uint8, int16, int32, float32 or float64.
    rate : int
        Frames a second.
    """

    samples: NDArray[Any]
    rate: int

    def __repr__(self) -> str:
        frames, channels = len(self.samples), self.samples.shape[1] if self.samples.ndim == 2 else 1
        return f"<AudioClip {frames / self.rate:.2f} s, {channels} x {self.rate} Hz, {self.samples.dtype}>"


class Audio:
    """Sounds as WAV (PCM or float, not compressed), every sample kept. 24-bit files are read as int32."""

    types = (AudioClip,)

    def encode(self, x: AudioClip) -> bytes:
        """Return the sound as a WAV file."""
        samples = x.samples.astype(x.samples.dtype.newbyteorder("<"), copy=False)
        channels = 1 if samples.ndim == 1 else samples.shape[-1]
        tag = _FORMATS.get(samples.dtype)
        if tag is None or samples.ndim not in (1, 2) or not 1 <= channels < 2**16 or not 1 <= x.rate < 2**32:
            raise InvalidInputError(
                f"A sound is (frames,) or (frames, channels) of uint8, int16, int32, float32 or float64 at a rate of 1 "
                f"or more; this is {samples.shape} of {samples.dtype} at {x.rate}."
            )
        size = samples.dtype.itemsize
        form = struct.pack(
            "<HHIIHH", tag, channels, x.rate, (x.rate * channels * size) % 2**32, channels * size, 8 * size
        )
        body = samples.tobytes()
        chunks = _chunk(b"fmt ", form) + _chunk(b"data", body)
        return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks

    def decode(self, data: bytes) -> AudioClip:
        """Return the sound that a WAV file holds."""
        chunks = _chunks(data)
        form, body = chunks.get(b"fmt "), chunks.get(b"data")
        if form is None or body is None or len(form) < 16:
            raise InvalidInputError("This WAV file lacks its format or its samples.")
        tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", form)
        if tag == _EXTENSIBLE and len(form) >= 26:
            (tag,) = struct.unpack_from("<H", form, 24)
        samples = _samples(body, tag, bits)
        if not channels or not rate or len(samples) % channels:
            raise InvalidInputError(f"This WAV file says {channels} channels at {rate} Hz for {len(samples)} samples.")
        return AudioClip(samples if channels == 1 else samples.reshape(-1, channels), rate)


def _chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def _chunks(data: bytes) -> dict[bytes, bytes]:
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise InvalidInputError(f"These {len(data)} bytes are no WAV file.")
    found: dict[bytes, bytes] = {}
    at = 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if at + 8 + size > len(data):
            raise InvalidInputError(f"This WAV file is cut off: {size} bytes announced, {len(data) - at - 8} there.")
        found.setdefault(name, data[at + 8 : at + 8 + size])
        at += 8 + size + size % 2
    return found


def _samples(body: bytes, tag: int, bits: int) -> NDArray[Any]:
    for dtype, known in _FORMATS.items():
        if known == tag and dtype.itemsize * 8 == bits:
            whole = len(body) - len(body) % dtype.itemsize
            return np.frombuffer(body[:whole], dtype).astype(dtype.newbyteorder("="))
    if (tag, bits) == (1, 24):
        wide = np.zeros((len(body) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(body[: len(body) // 3 * 3], np.uint8).reshape(-1, 3)
        return wide.reshape(-1).view("<i4").astype(np.int32)
    raise InvalidInputError(f"WAV files of format {tag} with {bits} bits are not read: use PCM or float.")
