"""Quicker variants of a module: nearly the same answers, the module as it was, one line where there is no such one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import superduper_nb as sd
from superduper_nb.errors import InvalidInputError
from superduper_nb.models import Predictor
from superduper_nb.models.optimize import compare

TEXTS = ["1 2 3", "0.5 0.25 -4", "7 7 7"]


class Net(torch.nn.Module):
    """A text of numbers becomes a named row and a label."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.Tanh(), torch.nn.Linear(32, 4))

    def preprocess(self, text: str) -> Any:
        return torch.tensor([float(part) for part in text.split()])

    def forward(self, batch: torch.Tensor) -> Any:
        rows = self.layers(batch)
        return {"row": rows, "best": rows.argmax(1)}

    def postprocess(self, row: Any) -> Any:
        return {"row": row["row"], "best": "abcd"[row["best"]]}


class Overflowing(Net):
    """Finite in float32 only."""

    def forward(self, batch: torch.Tensor) -> Any:
        rows = self.layers(batch)
        return {"row": rows if rows.dtype == torch.float32 else rows / 0, "best": rows.argmax(1)}


@pytest.fixture
def docs(mongo_uri: str, database: Any) -> Any:
    with sd.Client[Any](mongo_uri) as client:
        yield client[database.name]["docs"]


def apart(one: Any, other: Any) -> float:
    return float((one["row"] - other["row"]).abs().max())


@pytest.mark.parametrize(("how", "limit"), [("bf16", 0.03), ("int8", 0.03)])
def test_a_variant_answers_nearly_the_same_in_float32_and_leaves_the_module_alone(how: Any, limit: float) -> None:
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    plain, variant = Predictor(net).predict_many(TEXTS), Predictor(net, optimize=how).predict_many(TEXTS)
    for one, other in zip(plain, variant, strict=True):
        assert 0 < apart(one, other) < limit
        assert other["row"].dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    found = compare(plain, variant)
    assert found["max_difference"] == max(map(apart, plain, variant))
    assert (found["examples"], found["differing"]) == (
        3,
        sum(a["best"] != b["best"] for a, b in zip(plain, variant, strict=True)),
    )


def test_what_differs_is_counted() -> None:
    nan, inf = float("nan"), float("inf")
    assert compare([{"a": [1, 2.5]}, "x", nan], [{"a": [1, 2.0]}, "y", nan]) == {
        "examples": 3,
        "max_difference": 0.5,
        "differing": 1,
    }
    assert compare([[1.0]], [[inf]])["max_difference"] == inf
    assert compare([[1.0]], [[1.0, 2.0]])["differing"] == 1


def test_a_registered_variant_is_what_is_applied_and_its_difference_is_told(docs: Any) -> None:
    docs.create_model("net", Net(), optimize="bf16", examples=TEXTS)
    said = docs.models.describe("net")
    assert (said["optimize"], said["optimized"]["examples"]) == ("bf16", 3)
    assert 0 < said["optimized"]["max_difference"] < 0.03
    expected = Predictor(Net(), optimize="bf16").predict_many(TEXTS)
    assert [row["row"].tolist() for row in docs.predict_many("net", TEXTS)] == [row["row"].tolist() for row in expected]
    assert isinstance(docs.models["net"], Net)  # what is stored is the plain module
    assert docs.models["net"].layers[0].weight.dtype == torch.float32
    docs.create_model("net", Net(), optimize="bf16", examples=TEXTS)
    assert docs.models.versions("net") == [1]
    docs.create_model("net", Net(), optimize="bf16")  # compared by the same examples
    assert docs.models.versions("net") == [1]
    docs.create_model("net", Net())
    assert docs.models.versions("net") == [1, 2]


def test_examples_are_taken_from_what_a_watcher_gives_the_model(docs: Any) -> None:
    docs.insert_many([{"_id": i, "text": text} for i, text in enumerate([*TEXTS, None])])
    docs.create_model("net", Net())
    docs.create_watcher("net", key="text")
    jobs = docs.create_model("net", Net(), optimize="bf16")
    assert docs.models.describe("net")["optimized"]["examples"] == 3
    assert list(jobs) == ["net/text"]  # outputs are another version's: they are computed again
    expected = Predictor(Net(), optimize="bf16").predict(TEXTS[0])
    assert docs.find_one({"_id": 0})["_outputs"]["text"]["net"]["row"].tolist() == expected["row"].tolist()


@pytest.mark.parametrize(
    ("model", "how", "examples", "message"),
    [
        (len, "int8", ["x"], r"optimize='int8' is for torch modules; a builtin_function_or_method runs as it is"),
        (Net(), "fp4", ["x"], r"optimize='fp4': it must be one of 'compile', 'int8', 'bf16', or None"),
        (Net(), "bf16", None, r"give examples=\[…\], a few inputs of 'net'"),
        (Net(), "bf16", "1 2 3", r"examples='1 2 3': give a list of inputs"),
        (Net(), "bf16", ["1 2 3", "x"], r"The model fails on example 1: ValueError: could not convert"),
        (Net(), None, ["1 2 3"], r"examples= are what optimize= compares by"),
        (torch.nn.Tanh(), "int8", [[1.0]], r"this Tanh has no linear layer"),
        (Overflowing(), "bf16", TEXTS, r"With optimize='bf16' the model answers numbers that are not finite"),
    ],
)
def test_one_line_says_why_there_is_no_such_variant(
    docs: Any, model: Any, how: Any, examples: Any, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message) as raised:
        docs.create_model("net", model, optimize=how, examples=examples)
    assert "\n" not in str(raised.value)
    assert "net" not in docs.models


@pytest.mark.drill
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of its own modules, as it imports them
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="there is no C++ compiler")
def test_a_compiled_model_is_compiled_when_it_is_loaded(docs: Any) -> None:
    docs.create_model("net", Net(), optimize="compile", examples=TEXTS[:1])
    assert docs.models.describe("net")["optimized"]["max_difference"] < 1e-5
    predictor, _ = docs._workspace.loader.model("net")
    with torch.compiler.set_stance("fail_on_recompile"):  # whatever the size of the batch: nothing is left to compile
        for count in (1, 2, 3):
            assert (
                max(map(apart, predictor.predict_many(TEXTS[:count]), Predictor(Net()).predict_many(TEXTS[:count])))
                < 1e-5
            )


@pytest.mark.drill
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_no_compiler_is_said_in_one_line(docs: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    torch.compiler.reset()
    with pytest.raises(
        InvalidInputError, match=r"With optimize='compile' the model fails on example 0: .*ompiler"
    ) as said:
        docs.create_model("net", Net(), optimize="compile", examples=TEXTS)
    assert "\n" not in str(said.value)
