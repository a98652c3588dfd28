"""Sounds, and bytes of other media, in results."""

from __future__ import annotations

import base64
import re
import struct
from typing import Any

import numpy as np
import pytest

from superduper_nb.documents import AudioClip
from superduper_nb.widgets.results import Result
from tests.widgets.payloads import foreign_parts, shown_text

PLAYER = re.compile(r'<audio class="sddb-sound" controls preload="metadata" src="data:audio/wav;base64,([^"]+)"')
LARGEST = 1_000_000


def tone(seconds: float, rate: int, channels: int = 1) -> Any:
    wave = np.sin(np.arange(int(seconds * rate)) / rate * 2 * np.pi * 220)
    return wave if channels == 1 else np.stack([wave] * channels, axis=1)


def played(html: str) -> list[tuple[np.ndarray[Any, Any], int]]:
    """Return the samples and the rate of each player."""
    return [decoded(base64.b64decode(found)) for found in PLAYER.findall(html)]


def decoded(wav: bytes) -> tuple[np.ndarray[Any, Any], int]:
    """Read a µ-law WAV file as ITU-T G.711 says."""
    assert wav[:4] + wav[8:16] == b"RIFFWAVEfmt "
    tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", wav, 20)
    assert (tag, channels, bits) == (7, 1, 8)
    at = wav.index(b"data")
    (size,) = struct.unpack_from("<I", wav, at + 4)
    assert len(wav) == struct.unpack_from("<I", wav, 4)[0] + 8 == at + 8 + size + size % 2
    code = ~np.frombuffer(wav, np.uint8, size, at + 8)
    sign, exponent, mantissa = code >> 7, code >> 4 & 7, code & 15
    wide = (((mantissa.astype(int) << 3) + 132) << exponent) - 132
    return np.where(sign == 1, -wide, wide) / 32_635, rate


@pytest.mark.parametrize(("dtype", "full"), [("f4", 1), ("f8", 1), ("i2", 2**15 - 1), ("i4", 2**31 - 1)])
def test_a_short_sound_is_played_as_it_is(dtype: str, full: int) -> None:
    wave = tone(1.0, 16_000)
    html = Result([{"sound": AudioClip((wave * float(full)).astype(dtype), 16_000)}])._repr_mimebundle_()["text/html"]
    ((samples, rate),) = played(html)
    assert rate == 16_000
    np.testing.assert_allclose(samples, wave, atol=0.03)
    assert foreign_parts(html) == []
    assert "sound, 1.0 s, mono, 16,000 Hz" in shown_text(html)


def test_unsigned_bytes_are_sound_too() -> None:
    wave = tone(0.5, 8_000)
    clip = AudioClip((wave * 127 + 128).astype("u1"), 8_000)
    ((samples, _),) = played(Result([{"sound": clip}])._repr_mimebundle_()["text/html"])
    np.testing.assert_allclose(samples, wave, atol=0.03)


def test_a_long_sound_begins_to_play_and_says_so() -> None:
    html = Result([{"sound": AudioClip(tone(60.0, 44_100, channels=2), 44_100)}])._repr_mimebundle_()["text/html"]
    ((samples, rate),) = played(html)
    assert rate == 11_025
    assert "sound, 60.0 s, stereo, 44,100 Hz; its first 3.3 s" in shown_text(html)
    np.testing.assert_allclose(
        samples, tone(len(samples) / rate, rate), atol=0.08
    )  # averages of four lag by three eighths


def test_a_gallery_frames_the_sound_and_plain_text_tells_it() -> None:
    result = Result([{"name": "a", "sound": AudioClip(tone(1.0, 8_000), 8_000), "_score": 0.5}], layout="gallery")
    html = result._repr_mimebundle_()["text/html"]
    assert '<div class="sddb-frame"><div class="sddb-heard"><audio' in html
    assert "sound, 1.0 s, mono, 8,000 Hz" in repr(result)


def test_sounds_have_a_budget_and_what_is_left_out_is_told() -> None:
    result = Result([{"i": i, "sound": AudioClip(tone(10.0, 44_100), 44_100)} for i in range(50)])
    html = result._repr_mimebundle_()["text/html"]
    assert len(html.encode()) < LARGEST
    assert len(played(html)) >= 8
    assert "too large to be played here" in shown_text(html)


@pytest.mark.parametrize(
    "clip",
    [AudioClip(np.zeros(3), 0), AudioClip(np.array(["a"]), 8_000), AudioClip(object(), 8_000)],  # type: ignore[arg-type]
)
def test_what_is_no_sound_is_told(clip: AudioClip) -> None:
    html = Result([{"sound": clip}])._repr_mimebundle_()["text/html"]
    assert "can't be played (" in shown_text(html)
    assert played(html) == []


def test_an_empty_or_odd_sound_does_no_harm() -> None:
    for samples in (np.zeros(0, "f4"), np.full(100, np.nan, "f4"), np.full(100, np.inf), np.full(101, 1e30)):
        html = Result([{"sound": AudioClip(samples, 8_000)}])._repr_mimebundle_()["text/html"]
        assert foreign_parts(html) == []


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\0\0\0 ftypisom" + bytes(100), "MP4 video, 112 bytes"),
        (b"\x1aE\xdf\xa3", "WebM video, 4 bytes"),
        (b"ID3\x03" + bytes(6), "MP3 sound, 10 bytes"),
        (b"RIFF....WAVEfmt ", "WAV sound, 16 bytes"),
        (b"\xff\xd8\xff\xe0", "JPEG picture, 4 bytes"),
        (b"hello", "5 bytes"),
        (b"", "0 bytes"),
    ],
)
def test_other_media_are_told_by_kind_and_size(data: bytes, told: str) -> None:
    bundle = Result([{"media": data}, {"media": bytearray(data)}])._repr_mimebundle_()
    assert bundle["text/html"].count(f">{told}<") == 2
    assert bundle["text/plain"].count(told) == 2
