import hashlib
import hmac
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superduper_nb.documents import Bytes, Codec, Failed, Pickle, Type, builtin_types
from superduper_nb.errors import InvalidInputError, TrustError

KEY = b"key"


def sign(data: bytes) -> bytes:
    return hmac.digest(KEY, data, "sha256") + data


def verify(data: bytes) -> bytes:
    mark, payload = data[:32], data[32:]
    if not hmac.compare_digest(mark, hmac.new(KEY, payload, hashlib.sha256).digest()):
        raise TrustError("not signed here")
    return payload


class Canary:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_the_built_in_types() -> None:
    types = builtin_types()
    assert set(types) == {"vector", "tensor", "array", "image", "audio", "bytes", "pickle"}
    assert all(isinstance(type_, Type) for type_ in types.values())


def test_nothing_heavy_is_imported_for_them() -> None:
    code = (
        "import sys, bson, numpy; from superduper_nb.documents import Codec, builtin_types;"
        "Codec(builtin_types()).encode({'x': [1, numpy.eye(2)]});"
        "print({'torch', 'PIL', 'requests', 'fsspec', 'pandas', 'cloudpickle'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@given(st.binary())
def test_bytes_are_kept(data: bytes) -> None:
    codec = Codec(builtin_types())
    assert codec.encode(data) is data
    assert codec.decode(codec.encode_as("bytes", bytearray(data))) == data


def test_bytes_takes_bytes_only() -> None:
    with pytest.raises(InvalidInputError, match="takes bytes, not str"):
        Bytes().encode("text")  # type: ignore[arg-type]


@given(st.recursive(st.none() | st.text() | st.sets(st.integers()), st.lists))
def test_vouched_for_objects_come_back(value: Any) -> None:
    codec = Codec({**builtin_types(), "pickle": Pickle(sign=sign, verify=verify)})
    assert codec.decode(codec.encode_as("pickle", value), strict=True) == value


def test_row_83_a_pickle_that_nobody_vouches_for_is_never_loaded(tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    bomb = pickle.dumps(Canary(canary))
    forged = sign(b"harmless")[:32] + bomb
    for type_, data in ((Pickle(), bomb), (Pickle(verify=verify), bomb), (Pickle(verify=verify), forged)):
        codec = Codec({"pickle": type_})
        stored = {"x": {"_content": {"type": "pickle", "bytes": data}}}
        with pytest.raises(TrustError):
            codec.decode(stored, strict=True)
        assert isinstance(codec.decode(stored)["x"], Failed)
        assert not canary.exists()
    Pickle(verify=verify).decode(sign(bomb))
    assert canary.exists()  # so the test can fail


def test_what_can_not_be_pickled_is_said() -> None:
    with pytest.raises(InvalidInputError, match="generator can't be pickled"):
        Pickle().encode(x for x in "abc")


def test_types_must_name_classes() -> None:
    class Odd(Bytes):
        types = (5,)

    with pytest.raises(InvalidInputError, match="'odd': 'types' holds classes or their dotted names, not 5"):
        Codec({"odd": Odd()})
