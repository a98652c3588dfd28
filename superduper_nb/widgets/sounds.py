"""Sounds: short previews that a browser plays, encoded anew within a budget of bytes."""

from __future__ import annotations

import base64
import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from superduper_nb.widgets.pictures import Budget

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from superduper_nb.documents.media import AudioClip

__all__ = ["Sound", "is_sound", "player"]

LARGEST: Final = 36_000
"""Most bytes of one preview, a byte for each sample: 4.5 s at the lowest rate."""
LOWEST: Final = 8_000
"""Samples a second below which speech is not understood: rather than that, the preview ends early."""

_MULAW: Final = 7
"""WAV's number for G.711 µ-law: half the bytes of 16 bits, and every browser plays it."""


@dataclass(frozen=True, slots=True)
class Sound:
    """One sound to play; `uri` is empty where there was no room for it, or it could not be encoded."""

    uri: str
    told: str


def is_sound(value: Any) -> TypeGuard[AudioClip]:
    """Tell whether `value` is an `AudioClip`; nothing is imported for the question."""
    module = sys.modules.get("superduper_nb.documents.media")
    return module is not None and isinstance(value, module.AudioClip)


def player(clip: AudioClip, *, budget: Budget) -> Sound:
    """Encode the beginning of `clip` as WAV, in one channel.

    Only samples are kept, so no hostile file passes through.
    """
    try:
        seconds, told = len(clip.samples) / clip.rate, _told(clip)
        samples, rate = _preview(clip)
        uri = f"data:audio/wav;base64,{base64.b64encode(_wav(_mulaw(samples), rate)).decode()}"
    except Exception as error:  # somebody else's arrays raise anything, and a view must not fail
        return Sound("", f"sound, can't be played ({type(error).__name__})")
    if not budget.take(len(uri)):
        return Sound("", f"{told}, too large to be played here")
    played = len(samples) / rate
    return Sound(uri, told if seconds - played < 0.05 else f"{told}; its first {played:.1f} s")


def _told(clip: AudioClip) -> str:
    channels = 1 if clip.samples.ndim == 1 else clip.samples.shape[1]
    how = {1: "mono", 2: "stereo"}.get(channels, f"{channels} channels")
    return f"sound, {len(clip.samples) / clip.rate:.1f} s, {how}, {clip.rate:,} Hz"


def _preview(clip: AudioClip) -> tuple[NDArray[np.float32], int]:
    """Return samples from -1 to 1 and their rate: halved until all fits or the lowest is reached, then cut off."""
    step = 1
    while clip.rate / (2 * step) >= LOWEST and len(clip.samples) > LARGEST * step:
        step *= 2
    samples = _normal(clip.samples[: LARGEST * step])
    mono = samples if samples.ndim == 1 else samples.mean(axis=1)
    return mono[: len(mono) // step * step].reshape(-1, step).mean(axis=1), clip.rate // step


def _normal(samples: NDArray[Any]) -> NDArray[np.float32]:
    import numpy as np

    zero, full = 0.0, 1.0
    if samples.dtype == np.uint8:
        zero = full = 128.0
    elif samples.dtype.kind == "i":
        full = float(np.iinfo(samples.dtype).max)
    normal: NDArray[np.float32] = np.nan_to_num((samples.astype(np.float32) - zero) / np.float32(full))
    return normal


def _mulaw(samples: NDArray[np.float32]) -> bytes:
    """Compress as ITU-T G.711 says: sign, exponent and four bits of each sample, inverted."""
    import numpy as np

    wide = (np.clip(samples, -1, 1) * 32_635).astype(np.int32)
    biased = np.abs(wide) + 132
    exponent = np.log2(biased).astype(np.int32) - 7
    mantissa = (biased >> (exponent + 3)) & 0x0F
    return bytes(~((wide < 0) << 7 | exponent << 4 | mantissa).astype(np.uint8))


def _wav(body: bytes, rate: int) -> bytes:
    form = struct.pack("<HHIIHHH", _MULAW, 1, rate, rate, 1, 8, 0)
    head = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(body))
    return b"RIFF" + struct.pack("<I", len(head) + len(body) + len(body) % 2) + head + body + b"\0" * (len(body) % 2)
