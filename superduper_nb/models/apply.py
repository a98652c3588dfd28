"""Apply a model: preprocess each input, run batches, split them into rows, postprocess each row.

The same code runs on workers, in the model server and locally, so their answers are the same. One bad input fails
alone: its place in the result holds an `ItemError`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from copy import copy
from dataclasses import dataclass
from inspect import isgeneratorfunction
from typing import Any, Final

from superduper_nb.errors import InvalidInputError, ModelError
from superduper_nb.models import batches
from superduper_nb.models.optimize import Optimize, check_optimize, optimized
from superduper_nb.models.sizing import BatchSize, Halving, out_of_memory

__all__ = ["ItemError", "Predictor", "check_batch_size", "check_device", "check_model", "check_resources"]

_PADDED: Final = 4096
_HALVED: Final = 8
_WASTE: Final = 1.2
"""Batches of at least so many inputs may be halved, where padding makes their elements so many times as many."""
_END: Final = object()

Step = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class ItemError:
    """Stands in a result for an input that failed.

    Attributes
    ----------
    type : str
        Name of the exception's class.
    message : str
        Its text, at most 1 000 characters.
    """

    type: str
    message: str

    @classmethod
    def of(cls, error: BaseException) -> ItemError:
        """Describe an exception."""
        return cls(type(error).__name__, str(error)[:1000])

    def __str__(self) -> str:
        return f"{self.type}: {self.message}"


def check_model(obj: object) -> None:
    """Raise `InvalidInputError` unless `obj` is of a kind that can be applied."""
    steps = ("preprocess",) if _without_forward(obj) else ("forward", "preprocess")
    called = callable(obj) and not _without_forward(obj)
    if not (called or _estimator_method(obj) or any(hasattr(obj, step) for step in steps)):
        raise InvalidInputError(
            f"An object of type {type(obj).__name__} is no model: give a torch.nn.Module, an estimator with predict or "
            "transform, a callable, or an object with forward or preprocess."
        )


def check_batch_size(value: object) -> None:
    """Raise `InvalidInputError` unless `value` is None or a whole number of at least 1."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise InvalidInputError(f"batch_size={value!r}: it must be a whole number of at least 1, or None.")


def check_device(obj: object, device: object, *, here: bool) -> None:
    """Raise `InvalidInputError` unless `device` is one; where the model is applied `here`, one that is there.

    Parameters
    ----------
    here : bool
        It is applied on this machine. What another has shows only there: the job that applies it says so.
    """
    if device != "auto" and (_is_module(obj) or not isinstance(device, str)):
        batches.check_device(device, here=here)


def check_resources(value: object) -> dict[str, float]:
    """Return what a model needs of a worker; raise `InvalidInputError` unless it is names with positive numbers."""
    if isinstance(value, Mapping) and all(isinstance(name, str) and _positive(n) for name, n in value.items()):
        return {name: float(amount) for name, amount in value.items()}
    raise InvalidInputError(f"resources={value!r}: give names with positive numbers, like {{'GPU': 1}}.")


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


class Predictor:
    """A model ready to be applied.

    Parameters
    ----------
    obj : torch.nn.Module, sklearn estimator, callable or object
        What is applied. A module gets the collated batch; an estimator the list of inputs; a callable one input at a
        time; an object without any of these is its ``preprocess``.
    preprocess, postprocess : callable, optional
        Applied to each input before, and to each row after. Default: the methods of these names on `obj`.
    batch_size : int, optional
        Inputs a batch, at most. Default: found while it runs (see `superduper_nb.models.sizing`).
    device : str, default "auto"
        A torch device; "auto" takes the GPU where there is one.
    optimize : {"compile", "int8", "bf16"}, optional
        Apply a quicker variant of the module (see `superduper_nb.models.optimize`).

    Notes
    -----
    A generator function (or a module whose ``forward`` is one) yields its output piece by piece: `stream` passes the
    pieces on as they come, `predict` returns the list of them. Each input is run alone, a module gets a batch of one.

    An ``obj.collate(items)``, where there is one, builds the batch; otherwise `torch.utils.data.default_collate` does.
    Inputs are batched in the order of their size, so that a ``collate`` that pads wastes little.
    """

    def __init__(
        self,
        obj: Any,
        *,
        preprocess: Step | None = None,
        postprocess: Step | None = None,
        batch_size: int | None = None,
        device: str = "auto",
        optimize: Optimize | None = None,
    ) -> None:
        check_model(obj)
        check_batch_size(batch_size)
        if optimize is not None:
            check_optimize(obj, optimize)
        self._size, self._halving = BatchSize(batch_size), Halving()
        self._device = batches.place(obj, device) if _is_module(obj) else None
        self.streams = _yields(obj)
        self.compiled = optimize == "compile"
        self.obj = obj if optimize is None else optimized(obj, optimize)
        self.preprocess: Step | None = preprocess or getattr(self.obj, "preprocess", None)
        self.postprocess: Step | None = postprocess or getattr(self.obj, "postprocess", None)

    @property
    def batch_size(self) -> int:
        """Inputs of the next batch, at most."""
        return self._size.value

    def with_batch_size(self, batch_size: int) -> Predictor:
        """Return the same model, in memory once, with batches of another size."""
        other = copy(self)
        other._size = BatchSize(batch_size)
        return other

    def predict(self, x: Any) -> Any:
        """Return the model's output for one input.

        Raises
        ------
        ModelError
            The model raised.
        """
        (output,) = self.predict_many([x])
        if isinstance(output, ItemError):
            raise ModelError(f"The model failed on this input: {output}")
        return output

    def stream(self, x: Any) -> Generator[Any, None, None]:
        """Yield the model's output for one input piece by piece; whole, where the model yields nothing.

        Raises
        ------
        ModelError
            The model raised; what was yielded until then is good.
        """
        if not self.streams:
            yield self.predict(x)
            return
        try:
            yield from self._pieces(x if self.preprocess is None else self.preprocess(x))
        except (Exception, SystemExit) as error:
            raise ModelError(f"The model failed on this input: {ItemError.of(error)}") from error

    def _pieces(self, item: Any) -> Generator[Any, None, None]:
        in_batch = _is_module(self.obj) or hasattr(self.obj, "forward")
        pieces = self._call_on_batch([item]) if in_batch else self.obj(item)
        with closing(pieces):
            while True:
                with self._inference():  # not around the yield: the mode would be on for whatever runs meanwhile
                    piece = next(pieces, _END)
                if piece is _END:
                    return
                (row,) = batches.rows(piece) if in_batch else (piece,)
                yield row if self.postprocess is None else self.postprocess(row)

    def predict_many(self, xs: Sequence[Any]) -> list[Any]:
        """Return one output for each input, in order; an `ItemError` for each that failed."""
        if self.streams:
            return [_guard(self._all_pieces, x) for x in xs]
        results: list[Any] = [_guard(self.preprocess, x) for x in xs]
        good = [i for i, item in enumerate(results) if not isinstance(item, ItemError)]
        for positions in self._batches(good, results):
            rows = self._run_sorted([results[i] for i in positions])
            for i, row in zip(positions, rows, strict=True):
                results[i] = row if isinstance(row, ItemError) else _guard(self.postprocess, row)
        return results

    def warm_up(self, examples: Sequence[Any]) -> None:
        """Apply it to one input and to two, so that nothing has to be compiled when the first request comes.

        Raises
        ------
        ModelError
            It fails on them.
        """
        for count in (2, 1):  # torch compiles a batch of one by itself
            for output in self.predict_many([*examples, *examples][:count]):
                if isinstance(output, ItemError):
                    raise ModelError(f"The model can't be warmed up: {_first_line(output)}")

    def _all_pieces(self, x: Any) -> list[Any]:
        return list(self._pieces(x if self.preprocess is None else self.preprocess(x)))

    def _batches(self, positions: list[int], items: list[Any]) -> Iterator[list[int]]:
        """Cut what is ordered by size into batches; where a `collate` has to pad, with a limit in elements, too."""
        sizes = {i: batches.size(items[i]) for i in positions}
        pads = hasattr(self.obj, "collate")
        batch: list[int] = []
        for i in sorted(positions, key=sizes.__getitem__):
            full = len(batch) >= self.batch_size
            if batch and (full or (pads and sizes[i] > sizes[batch[0]] and sizes[i] * (len(batch) + 1) > _PADDED)):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _run_sorted(self, items: list[Any]) -> list[Any]:
        """Run a batch in the order of size; where much of it would be padding and that is faster, in two halves."""
        sizes = [batches.size(item) for item in items]
        waste = sizes[-1] * len(items) / max(sum(sizes), 1)
        if not hasattr(self.obj, "collate") or len(items) < _HALVED or waste < _WASTE:
            return self._run(items)
        halved, middle, begun = self._halving.wanted(len(items)), len(items) // 2, time.perf_counter()
        rows = self._run(items[:middle]) + self._run(items[middle:]) if halved else self._run(items)
        took = time.perf_counter() - begun
        self._halving.note(len(items), halved, sum(sizes), took)
        if halved:
            self._size.note(len(items), sum(sizes), took)
        return rows

    def _run(self, items: list[Any]) -> list[Any]:
        """Run a batch; where it fails, halve it until the inputs that fail stand alone."""
        try:
            return self._timed(items)
        except (Exception, SystemExit) as error:
            if len(items) == 1:
                return [ItemError.of(error)]
            if out_of_memory(error):
                self._size.halve(len(items))
        middle = len(items) // 2
        return self._run(items[:middle]) + self._run(items[middle:])

    def _timed(self, items: list[Any]) -> list[Any]:
        begun = time.perf_counter()
        rows = self._forward(items)
        # Elements, not inputs: they come in the order of their size, and later ones are longer.
        self._size.note(len(items), len(items) * batches.size(items[-1]), time.perf_counter() - begun)
        return rows

    def _forward(self, items: list[Any]) -> list[Any]:
        if _without_forward(self.obj):
            rows = items
        elif hasattr(self.obj, "forward"):
            rows = self._apply_to_batch(items)
        elif method := _estimator_method(self.obj):
            rows = batches.rows(method(batches.stack(items)))
        elif callable(self.obj):
            rows = [self.obj(item) for item in items]
        else:
            rows = items
        if len(rows) != len(items):
            raise ModelError(f"the model answered {len(rows)} rows to a batch of {len(items)} inputs")
        return rows

    def _apply_to_batch(self, items: list[Any]) -> list[Any]:
        with self._inference():
            return batches.rows(self._call_on_batch(items))

    def _call_on_batch(self, items: list[Any]) -> Any:
        collate = getattr(self.obj, "collate", batches.collate)
        apply = self.obj if callable(self.obj) else self.obj.forward
        return apply(batches.to_device(collate(items), self._device))

    def _inference(self) -> AbstractContextManager[Any]:
        if self._device is None:
            return nullcontext()
        import torch

        return torch.inference_mode()


def _first_line(error: ItemError) -> str:
    return str(error).splitlines()[0]


def _guard(step: Step | None, x: Any) -> Any:
    if step is None:
        return x
    try:
        return step(x)
    except (Exception, SystemExit) as error:
        return ItemError.of(error)


def _yields(obj: object) -> bool:
    return any(isgeneratorfunction(step) for step in (obj, getattr(obj, "forward", None), type(obj).__call__))


def _is_module(obj: object) -> bool:
    if "torch" not in sys.modules:  # no module can exist before torch was imported
        return False
    import torch  # waits where another thread is importing it just now

    return isinstance(obj, torch.nn.Module)


def _without_forward(obj: object) -> bool:
    """Say whether it is a module that leaves ``forward`` out: its ``preprocess`` is all of it."""
    if not _is_module(obj):
        return False
    import torch

    return getattr(getattr(obj, "forward", None), "__func__", None) is torch.nn.Module.forward


def _estimator_method(obj: object) -> Step | None:
    if isinstance(obj, type):
        return None
    return getattr(obj, "predict", None) or getattr(obj, "transform", None)
