"""Tensors are stored as safetensors beside the pickle, and come back as they were: numbers, layout, what they share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pymongo.database import Database
from safetensors.torch import load

from superduper_nb.components import ComponentStore, artifacts
from superduper_nb.components.fingerprint import fingerprint
from superduper_nb.components.weights import Reader, Writer
from superduper_nb.errors import InvalidInputError, TrustError

Mongo = Database[dict[str, Any]]
DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64),
    *(torch.int64, torch.int8, torch.uint8, torch.uint16, torch.bool),
]
LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "whole": lambda x: x,
    "transposed": lambda x: x.movedim(0, -1) if x.ndim else x,
    "every other": lambda x: x[::2] if x.ndim else x,
    "one number spread": lambda x: x.flatten()[:1].expand(7) if x.numel() else x,
}


def there_and_back(obj: Any) -> Any:
    packed = artifacts.pack(obj, what="it")
    return artifacts._Unpickler(packed).load()


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    def plain(x: torch.Tensor) -> Any:
        return x.detach().clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8)

    told = [(type(x), x.dtype, x.shape, x.stride(), x.storage_offset(), x.requires_grad) for x in (a, b)]
    return told[0] == told[1] and torch.equal(plain(a), plain(b))


@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 4), max_size=4),
    layout=st.sampled_from(sorted(LAYOUTS)),
    numbers=st.randoms(use_true_random=False),
    wanted=st.booleans(),
    as_parameter=st.booleans(),
)
def test_a_tensor_comes_back_bit_by_bit_in_its_layout(
    dtype: torch.dtype, shape: list[int], layout: str, numbers: Any, wanted: bool, as_parameter: bool
) -> None:
    count = torch.Size(shape).numel() * dtype.itemsize
    # Any bytes will do: also NaN with a payload has to stay what it is.
    raw = bytearray(numbers.randbytes(count)) if dtype != torch.bool else bytearray(numbers.choices((0, 1), k=count))
    tensor = LAYOUTS[layout](torch.frombuffer(raw, dtype=dtype).reshape(shape) if raw else torch.empty(shape).to(dtype))
    # (torch 2.13 itself can't rebuild a tensor of 8 bits that wants gradients.)
    wanted = wanted and (dtype.is_floating_point or dtype.is_complex) and dtype != torch.float8_e4m3fn
    tensor = torch.nn.Parameter(tensor, wanted) if as_parameter else tensor.requires_grad_(wanted)
    found = there_and_back({"x": [tensor]})["x"][0]
    assert same(found, tensor)
    assert found.untyped_storage().nbytes() == tensor.untyped_storage().nbytes()
    assert fingerprint(found) == fingerprint(tensor)


class Tied(torch.nn.Module):
    """An output layer with the weights of the input layer, a view of one, and a buffer that is no state."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(5, 3)
        self.head = torch.nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("first", self.embed.weight.detach()[0])
        self.register_buffer("scratch", torch.zeros(()), persistent=False)

    def forward(self, x: Any) -> Any:
        return self.head(self.embed(x)) + self.scratch


def test_what_is_shared_stays_shared() -> None:
    found = there_and_back(Tied())
    assert found.head.weight is found.embed.weight
    with torch.no_grad():
        found.embed.weight[0] = 7.0
    assert found.first.tolist() == [7.0] * 3
    assert load(artifacts.pack(Tied(), what="it").weights or b"").keys() == {"0", "1"}  # the weights once, and scratch
    whole = torch.ones(2)
    found, view = there_and_back((whole, whole.view(2, 1)))
    found[1] = 5.0
    assert (view.tolist(), whole.tolist()) == ([[1.0], [5.0]], [1.0, 1.0])


KINDS: dict[str, Callable[[], Any]] = {
    "quantised": lambda: torch.quantize_per_tensor(torch.randn(3, 4), 0.1, 0, torch.qint8),
    "sparse": lambda: torch.eye(4).to_sparse(),
    "conjugate": lambda: torch.randn(3, dtype=torch.complex64).conj(),
    "of one byte": lambda: torch.zeros(3, dtype=torch.uint8).view(torch.float8_e8m0fnu),
    "without numbers": lambda: torch.empty(3, device="meta"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*deprecated:UserWarning", "ignore:.*prototype:UserWarning")
def test_tensors_of_other_kinds_come_back(kind: str) -> None:
    obj = KINDS[kind]()
    found = there_and_back(obj)
    assert (found.dtype, found.layout, found.is_conj()) == (obj.dtype, obj.layout, obj.is_conj())
    assert fingerprint(found) == fingerprint(obj)
    if not obj.is_meta:
        dense = [each.dequantize() if each.is_quantized else each.to_dense() for each in (found, obj)]
        assert dense[0].tolist() == dense[1].tolist()


def test_the_weights_are_a_file_of_safetensors_and_the_pickle_has_no_number_of_them() -> None:
    layer = torch.nn.Linear(300, 200)
    packed = artifacts.pack({"object": layer}, what="it")
    assert len(packed.pickle) < 2000
    stored = load(packed.weights or b"")
    assert [(name, tuple(x.shape), x.dtype) for name, x in sorted(stored.items())] == [
        ("0", (200, 300), torch.float32),
        ("1", (200,), torch.float32),
    ]
    assert torch.equal(stored["0"], layer.weight.detach())
    assert artifacts.pack({"object": len}, what="it").weights is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_what_was_on_a_gpu_is_read_where_there_is_none() -> None:
    writer, layer = Writer(), torch.ones(2)
    writer.persistent_id(layer)
    name, dtype, device = writer.persistent_id(layer._typed_storage()) or ("", None, "")
    assert device == "cpu"
    found = Reader(writer.data() or b"").persistent_load((name, dtype, "cuda:0"))
    assert (found.device.type, found.tolist()) == ("cpu", [1.0, 1.0])


# --- in a database -------------------------------------------------------------------------------------------------


@pytest.fixture
def store(database: Mongo, home: Path) -> ComponentStore:
    return ComponentStore(database)


def stored(database: Mongo) -> int:
    return database["_sddb.fs.files"].count_documents({})


def test_both_parts_are_stored_once_and_go_with_the_last_that_uses_them(store: ComponentStore, database: Mongo) -> None:
    layer = torch.nn.Linear(3, 2)
    store.put("model", "a", {}, obj=layer)
    store.put("model", "a", {}, obj=layer)
    assert (store.versions("model", "a"), stored(database)) == ([1], 2)
    store.put("model", "b", {}, obj={"layer": layer})  # another pickle, the same weights
    assert stored(database) == 3
    store.delete("model", "a")
    assert torch.equal(store.load(store.get("model", "b"))["layer"].weight, layer.weight)
    store.delete("model", "b")
    assert stored(database) == database["_sddb.fs.chunks"].count_documents({}) == 0


def test_an_artifact_of_an_earlier_version_with_its_weights_in_the_pickle_loads(
    store: ComponentStore, database: Mongo
) -> None:
    layer = torch.nn.Linear(3, 2)
    store.put("model", "m", {}, obj=layer)
    component = store.get("model", "m")
    header = artifacts.save(database, artifacts.Packed(artifacts.dumps(layer, what="it")))
    assert header["format"] == "cloudpickle"
    artifact = artifacts.seal(component.identity, header)
    database["_sddb.components"].update_one(component.identity, {"$set": {"artifact": artifact}})
    assert torch.equal(store.load(store.get("model", "m")).weight, layer.weight)
    assert torch.equal(store.load(store.trust(store.get("model", "m"))).weight, layer.weight)


@pytest.mark.parametrize("part", ["sha256", "weights"])
def test_neither_part_is_loaded_when_it_is_not_the_one_that_was_signed(
    store: ComponentStore, database: Mongo, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("model", "m", {}, obj=torch.nn.Linear(3, 2))
    store.put("model", "other", {}, obj=torch.nn.Linear(4, 2))
    mine, other = (store.get("model", id).artifact or {} for id in ("m", "other"))
    with monkeypatch.context() as patch:
        patch.setenv("SUPERDUPER_TRUST_KEY", "00" * 32)
        unsigned = {name: value for name, value in mine.items() if name != "signature"}
        foreign = artifacts.seal(store.get("model", "m").identity, unsigned)
    without = {name: value for name, value in mine.items() if name != "weights"}
    for forged in ({**mine, part: other[part]}, foreign, without, {**without, "format": "cloudpickle"}):
        database["_sddb.components"].update_one({"id": "m"}, {"$set": {"artifact": forged}})
        with pytest.raises(TrustError, match="%sddb trust models/m"):
            store.load(store.get("model", "m"))
    database["_sddb.components"].update_one({"id": "m"}, {"$set": {"artifact": mine}})
    file = database["_sddb.fs.files"].find_one({"filename": mine[part]})
    assert file is not None
    chunk = database["_sddb.fs.chunks"].find_one({"files_id": file["_id"]})
    assert chunk is not None
    for data in (chunk["data"][:-1], b"", chunk["data"][:-1] + b"\xff"):
        database["_sddb.fs.chunks"].update_one({"_id": chunk["_id"]}, {"$set": {"data": data}})
        for use in (store.load, store.trust):
            with pytest.raises(TrustError, match="not those that were signed"):
                use(store.get("model", "m"))
    database["_sddb.fs.files"].delete_one({"_id": file["_id"]})
    with pytest.raises(TrustError, match="gone"):
        store.load(store.get("model", "m"))


def test_weights_from_elsewhere_are_loaded_when_they_are_trusted(
    store: ComponentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = torch.nn.Linear(3, 2)
    with monkeypatch.context() as patch:
        patch.setenv("SUPERDUPER_TRUST_KEY", "ab" * 32)
        theirs, _ = store.put("model", "theirs", {}, obj=layer)
    with pytest.raises(TrustError):
        store.load(theirs)
    assert torch.equal(store.load(store.trust(theirs)).weight, layer.weight)


def test_what_can_not_be_stored_is_named_also_beside_weights(store: ComponentStore, database: Mongo) -> None:
    layer = torch.nn.Linear(3, 2)
    layer.generator = (i for i in range(3))  # type: ignore[assignment]
    with pytest.raises(InvalidInputError, match="generator of Linear"):
        store.put("model", "m", {}, obj=layer)
    assert stored(database) == 0
