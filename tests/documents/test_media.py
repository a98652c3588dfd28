import io
import struct
import zlib
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL.PngImagePlugin import PngImageFile

from superduper_nb.documents import Audio, AudioClip, Codec, Failed, Image, builtin_types
from superduper_nb.errors import InvalidInputError

BITS = {"1": 1, "L": 8, "LA": 16, "P": 8, "RGB": 24, "RGBA": 32, "I;16": 16, "I": 32, "F": 32, "CMYK": 32}


def saved(image: PIL.Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@given(st.data())
def test_images_of_every_mode_come_back_pixel_by_pixel(data: st.DataObject) -> None:
    mode = data.draw(st.sampled_from(sorted(BITS)))
    size = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    count = (size[0] * BITS[mode] + 7) // 8 * size[1]
    image = PIL.Image.frombytes(mode, size, data.draw(st.binary(min_size=count, max_size=count)))
    if mode == "P":
        image.putpalette(bytes(range(256)) * 3)
    back = Image().decode(Image().encode(image))
    assert (back.mode, back.size, back.tobytes()) == (image.mode, image.size, image.tobytes())
    assert back.getpalette() == image.getpalette()


def test_a_subclass_is_an_image_and_what_is_read_is_bound_to_no_file() -> None:
    picture = PIL.Image.open(io.BytesIO(saved(PIL.Image.new("RGB", (3, 2), "red"), "PNG")))
    assert type(picture) is PngImageFile
    codec = Codec(builtin_types())
    stored = codec.encode({"pictures": [picture]})
    assert stored["pictures"][0]["_content"]["type"] == "image"
    back = codec.decode(stored)["pictures"][0]
    back.putpixel((0, 0), (1, 2, 3))
    assert back.getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_downloaded_images_of_the_usual_formats_are_read(format: str) -> None:
    assert Image().decode(saved(PIL.Image.new("RGB", (5, 4)), format)).size == (5, 4)


def test_an_animation_is_its_first_frame() -> None:
    frames = [PIL.Image.new("RGB", (2, 2), color) for color in ("red", "green", "blue")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Image().decode(data).convert("RGB").getpixel((0, 0)) == (255, 0, 0)


def _png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _png(width: int, height: int, *chunks: bytes) -> bytes:
    header = _png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = _png_chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + rows + _png_chunk(b"IEND", b"")


WHOLE = saved(PIL.Image.effect_noise((64, 64), 50), "PNG")
BAD = {
    "decompression bomb": (_png(60_000, 60_000), "too large"),
    "beyond where Pillow warns": (_png(10_000, 10_000), "too large|pixels"),
    "beyond our limit": (_png(10_000, 6_000), "60000000|10000 x 6000 pixels"),
    "two megabytes of text": (_png(8, 8, _png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**21)))), "damaged"),
    "truncated": (WHOLE[: len(WHOLE) // 2], "damaged"),
    "postscript": (saved(PIL.Image.new("RGB", (4, 4)), "EPS"), "no image of a known kind"),
    "icon": (saved(PIL.Image.new("RGB", (16, 16)), "ICO"), "no image of a known kind"),
    "login page": (b"<!DOCTYPE html><html><form>password</form></html>", "no image of a known kind"),
    "nothing": (b"", "no image of a known kind"),
}


@pytest.mark.parametrize(("data", "message"), BAD.values(), ids=BAD.keys())
def test_rows_74_and_75_dangerous_or_wrong_images_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Image().decode(data)
    read = Codec(builtin_types()).decode({"_content": {"type": "image", "bytes": data, "url": "https://x.org/a.png"}})
    assert isinstance(read, Failed)


def test_limits_hold_on_writing_and_may_be_widened() -> None:
    image = PIL.Image.new("L", (30, 20))
    with pytest.raises(InvalidInputError, match="30 x 20 pixels; at most 500"):
        Image(max_pixels=500).encode(image)
    assert Image(max_pixels=600).decode(Image(max_pixels=600).encode(image)).size == (30, 20)
    with pytest.raises(InvalidInputError, match="mode LAB can't be stored without loss"):
        Image().encode(PIL.Image.new("LAB", (2, 2)))


SAMPLES = st.sampled_from(["u1", "i2", "i4", "f4", "f8"]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=2, min_side=2, max_side=9))
)


@given(SAMPLES, st.integers(1, 200_000))
def test_sounds_come_back_sample_by_sample(samples: np.ndarray, rate: int) -> None:
    codec = Codec(builtin_types())
    back = codec.decode(codec.encode({"x": AudioClip(samples, rate)}))["x"]
    assert back.rate == rate
    assert (back.samples.dtype, back.samples.shape) == (samples.dtype, samples.shape)
    assert back.samples.tobytes() == samples.tobytes()
    assert back.samples.flags.writeable


def test_sounds_are_files_that_others_read_and_write() -> None:
    import wave

    tone = np.array([[0, 1], [-2, 3]], np.int16)
    with wave.open(io.BytesIO(Audio().encode(AudioClip(tone, 8000)))) as file:
        assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (2, 8000, 2)
        assert file.readframes(9) == tone.tobytes()
    other = io.BytesIO()
    with wave.open(other, "wb") as file:
        file.setparams((1, 3, 44100, 0, "NONE", ""))
        file.writeframes(b"\x01\x00\x00" + b"\xff\xff\xff")
    back = Audio().decode(other.getvalue())
    np.testing.assert_array_equal(back.samples, [1 << 8, -1 << 8])  # 24 bits, in the upper part of 32


@pytest.mark.parametrize(
    "clip",
    [
        AudioClip(np.zeros(4, np.int64), 8000),
        AudioClip(np.zeros((2, 2, 2), np.int16), 8000),
        AudioClip(np.zeros(4, np.int16), 0),
        AudioClip(np.zeros((0, 0), np.int16), 8000),
    ],
    ids=["dtype", "dimensions", "rate", "no channels"],
)
def test_what_is_no_sound_is_refused(clip: AudioClip) -> None:
    with pytest.raises(InvalidInputError, match="A sound is"):
        Audio().encode(clip)


GOOD = Audio().encode(AudioClip(np.arange(8, dtype=np.int16), 8000))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"ID3\x04", "no WAV file"),
        (GOOD[:-3], "cut off"),
        (GOOD[:12], "lacks"),
        (GOOD[:20] + b"\x55\0" + GOOD[22:], "format 85"),
        (GOOD[:22] + b"\0\0" + GOOD[24:], "0 channels"),
        (GOOD[:22] + b"\3\0" + GOOD[24:], "3 channels"),
    ],
    ids=["mp3", "truncated", "no chunks", "mp3 in wav", "no channel", "odd channels"],
)
def test_wrong_wav_files_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Audio().decode(data)
