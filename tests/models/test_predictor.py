"""Models of every kind give one output for each input, the same for one as for many; bad inputs fail alone."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from superduper_nb.errors import InvalidInputError, ModelError
from superduper_nb.models import ItemError, Predictor

Pair = namedtuple("Pair", "a b")


class Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 2)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x: Any) -> Any:
        return self.drop(self.layer(x))


class WithSteps(Linear):
    def preprocess(self, x: str) -> Any:
        return torch.tensor([float(part) for part in x.split()])

    def postprocess(self, row: Any) -> list[float]:
        return [round(v, 4) for v in row.tolist()]


class OfDicts(Linear):
    def forward(self, batch: Any) -> Any:
        return {"sum": self.layer(batch["a"] + batch["b"]), "names": batch["name"]}


class OfTuples(Linear):
    def forward(self, batch: Any) -> Any:
        return self.layer(batch[0]), batch[1] * 2


class OfNamed(Linear):
    def forward(self, batch: Any) -> Any:
        assert isinstance(batch, Pair)
        return self.layer(batch.a) + batch.b[:, None]


class Padding(torch.nn.Module):
    """Takes texts of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(256, 4)
        self.widths: list[int] = []

    def preprocess(self, text: str) -> Any:
        return torch.tensor(list(text.encode()))

    def collate(self, items: list[Any]) -> Any:
        return torch.nn.utils.rnn.pad_sequence(items, batch_first=True)

    def forward(self, tokens: Any) -> Any:
        self.widths.append(tokens.shape[1])
        there = (tokens > 0)[..., None]
        return (self.table(tokens) * there).sum(1)


class NoParameters(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x * 2


class Lengths(torch.nn.Module):
    """A module that is its preprocess: a table to look up in, no forward."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(9.0) * 2)

    def preprocess(self, x: str) -> torch.Tensor:
        found: torch.Tensor = self.table[len(x)]
        return found


class OnlyPreprocess:
    def preprocess(self, x: str) -> str:
        return x.upper()


class ForwardOnly:
    def forward(self, batch: Any) -> Any:
        return batch + 1


random = np.random.default_rng(0)
X, Y = random.standard_normal((50, 3)), random.standard_normal(50)
TEXTS = ["red warm scarf", "blue hat", "warm gloves", "red hat"] * 5


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, str):
        return bool(a == b)
    return bool(np.allclose(np.asarray(a), np.asarray(b), atol=1e-6))


def tensors(n: int = 70) -> list[Any]:
    return list(torch.randn(n, 3, generator=torch.Generator().manual_seed(1)))


KINDS: dict[str, tuple[Any, list[Any]]] = {
    "module": (Linear(), tensors()),
    "module of arrays": (Linear(), [np.ones(3, "f4") * i for i in range(40)]),
    "module with steps": (WithSteps(), [f"{i} 1 2" for i in range(40)]),
    "dicts": (OfDicts(), [{"a": t, "b": t, "name": str(i)} for i, t in enumerate(tensors())]),
    "tuples": (OfTuples(), [(t, float(i)) for i, t in enumerate(tensors())]),
    "named tuples": (OfNamed(), [Pair(t, float(i)) for i, t in enumerate(tensors())]),
    "padding": (Padding(), ["a" * (i % 17 + 1) for i in range(90)]),
    "no parameters": (NoParameters(), tensors()),
    "only preprocess": (OnlyPreprocess(), ["a", "b"]),
    "module with preprocess alone": (Lengths(), ["a", "abcd", ""]),
    "forward without torch": (ForwardOnly(), [np.arange(2), np.arange(2) * 3]),
    "regression": (LinearRegression().fit(X, Y), list(X)),
    "rows as lists": (LinearRegression().fit(X, Y), X.tolist()),
    "classifier": (LogisticRegression().fit(X, Y > 0), list(X)),
    "scaler": (StandardScaler().fit(X), list(X)),
    "data frames": (StandardScaler().set_output(transform="pandas").fit(pd.DataFrame(X)), list(X)),
    "sparse": (TfidfVectorizer().fit(TEXTS), TEXTS),
    "pipeline": (make_pipeline(CountVectorizer(), LogisticRegression()).fit(TEXTS, [t[0] for t in TEXTS]), TEXTS),
    "pipeline without predict": (make_pipeline(StandardScaler(), StandardScaler()).fit(X), list(X)),
    "callable": (lambda x: x + 1, list(range(50))),
    "class": (str, [1, 2.5, None]),
    "of tokens": (len, TEXTS),
}


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
@pytest.mark.parametrize("kind", KINDS)
def test_one_and_many_give_the_same_in_the_order_of_the_inputs(kind: str) -> None:
    obj, xs = KINDS[kind]
    predictor = Predictor(obj, batch_size=16)
    many = predictor.predict_many(xs)
    assert len(many) == len(xs)
    assert not any(isinstance(output, ItemError) for output in many), many[0]
    for x, output in zip(xs[::7], many[::7], strict=True):
        assert same(predictor.predict(x), output)


def test_a_module_answers_as_it_does_by_hand() -> None:
    module, xs = Linear().eval(), tensors()
    with torch.no_grad():
        by_hand = module(torch.stack(xs))
    outputs = Predictor(module).predict_many(xs)
    assert torch.allclose(torch.stack(outputs), by_hand, atol=1e-6)
    assert not outputs[0].requires_grad
    assert outputs[0].untyped_storage().nbytes() == 2 * 4  # not a window on the whole batch


def test_estimators_answer_as_they_do_by_hand() -> None:
    model = LinearRegression().fit(X, Y)
    assert np.allclose(Predictor(model).predict_many(list(X)), model.predict(X))
    text = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(TEXTS, [t[0] for t in TEXTS])
    assert Predictor(text).predict_many(TEXTS) == text.predict(TEXTS).tolist()


def test_nothing_in_nothing_out() -> None:
    for obj, _ in KINDS.values():
        assert Predictor(obj).predict_many([]) == []


def test_steps_that_are_given_go_before_those_of_the_object() -> None:
    predictor = Predictor(WithSteps(), preprocess=lambda x: torch.ones(3) * x, postprocess=lambda row: row.shape)
    assert predictor.predict(4.0) == torch.Size([2])


def test_inputs_of_like_size_are_batched_together() -> None:
    model = Padding()
    Predictor(model, batch_size=4).predict_many(["a" * n for n in (9, 1, 9, 1, 9, 1, 9, 1)])
    assert model.widths == [1, 9]


# --- failing -------------------------------------------------------------------------------------------------------


def picky(x: Any) -> Any:
    if x == 13:
        raise ValueError("unlucky")
    if x == 17:
        raise SystemExit(3)
    return x


@pytest.mark.parametrize("step", ["preprocess", "model", "postprocess"])
def test_a_bad_input_fails_alone(step: str) -> None:
    steps = {step: picky} if step != "model" else {}
    outputs = Predictor(picky if step == "model" else (lambda x: x), **steps).predict_many(range(40))  # type: ignore[arg-type]
    assert outputs[13] == ItemError("ValueError", "unlucky")
    assert outputs[17] == ItemError("SystemExit", "3")
    assert [o for o in outputs if not isinstance(o, ItemError)] == [i for i in range(40) if i not in (13, 17)]


class Touchy(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        if (x == 13).any():
            raise RuntimeError("CUDA out of memory, say")
        return x


def test_a_bad_input_fails_alone_in_a_batch() -> None:
    outputs = Predictor(Touchy()).predict_many([torch.tensor([float(i)]) for i in range(40)])
    assert isinstance(outputs[13], ItemError)
    assert [int(o) for i, o in enumerate(outputs) if i != 13] == [i for i in range(40) if i != 13]


def test_an_input_of_another_shape_fails_alone() -> None:
    outputs = Predictor(Linear()).predict_many([*tensors(10), torch.ones(4), "text"])
    assert [isinstance(o, ItemError) for o in outputs] == [False] * 10 + [True, True]


def test_one_input_that_fails_raises() -> None:
    with pytest.raises(ModelError, match="ValueError: unlucky"):
        Predictor(picky).predict(13)


def test_interrupts_are_not_swallowed() -> None:
    def stop(x: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Predictor(stop).predict_many([1])


class Answers(torch.nn.Module):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Any) -> Any:
        return self.answer(x)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: torch.cat([x, x]), "2 rows to a batch of 1"),
        (lambda x: x.sum(), "0-d"),
        (lambda x: None, "NoneType"),
        (lambda x: "text", "str"),
        (lambda x: {"a": x, "b": torch.cat([x, x])}, "argument"),
        (lambda x: (x, 3), "int"),
    ],
)
def test_an_answer_that_is_not_one_row_an_input(answer: Any, message: str) -> None:
    (output,) = Predictor(Answers(answer)).predict_many([torch.ones(2)])
    assert isinstance(output, ItemError)
    assert message in output.message


def test_a_very_long_message_is_cut() -> None:
    def fails(x: Any) -> Any:
        raise ValueError("x" * 10**6)

    assert len(Predictor(fails).predict_many([1])[0].message) == 1000


@pytest.mark.parametrize("obj", [3, None, "text", object(), [1], torch.nn.ModuleList([Linear()])])
def test_what_is_no_model(obj: Any) -> None:
    with pytest.raises(InvalidInputError, match="no model"):
        Predictor(obj)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "gpu", "xpu:77", ""])
def test_devices_that_are_not_here(device: str) -> None:
    with pytest.raises(InvalidInputError, match="device="):
        Predictor(Linear(), device=device)


def test_a_module_that_is_its_preprocess_answers_as_that_does() -> None:
    assert [float(x) for x in Predictor(Lengths()).predict_many(["abcd", "a"])] == [8.0, 2.0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_it_answers_as_on_the_processor() -> None:
    xs = tensors()
    here, there = Predictor(Linear(), device="cpu").predict_many(xs), Predictor(Linear()).predict_many(xs)
    assert all(torch.allclose(a, b, atol=1e-5) and b.device.type == "cpu" for a, b in zip(here, there, strict=True))


def test_batches_that_are_padded_are_limited_in_elements() -> None:
    seen: list[tuple[int, int]] = []

    class Texts:
        def preprocess(self, text: str) -> list[int]:
            return list(range(len(text)))

        def collate(self, items: list[list[int]]) -> list[list[int]]:
            seen.append((len(items), max(map(len, items))))
            return items

        def forward(self, batch: list[list[int]]) -> list[int]:
            return [len(item) for item in batch]

    texts = ["x" * (1 + 37 * i % 500) for i in range(100)]
    assert Predictor(Texts(), batch_size=64).predict_many(texts) == [len(text) for text in texts]
    assert all(count * longest <= 4096 for count, longest in seen)
    assert len(seen) < 15
    seen.clear()
    Predictor(Texts(), batch_size=64).predict_many(["x" * 500] * 64)  # nothing to pad
    assert seen == [(64, 500)]


@pytest.mark.parametrize("given", [0, -1, True, 1.5, "8"])
def test_a_batch_size_is_a_whole_number_of_at_least_one(given: Any) -> None:
    with pytest.raises(InvalidInputError, match="batch_size="):
        Predictor(len, batch_size=given)


def test_a_single_number_in_an_answer_is_named() -> None:
    class Losing(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"double": 2 * x, "loss": x.sum()}

    (error,) = Predictor(Losing()).predict_many([torch.ones(2)])
    assert isinstance(error, ItemError)
    assert "'loss'" in error.message
    assert "one row an input" in error.message
