"""What enters and leaves the model server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

__all__ = ["Current", "Errors", "Form", "Load", "LoadedModel", "Prediction", "Predicts", "Slice"]

Form = Literal["objects", "json", "bson"]
"""How inputs and outputs look: Python objects; or stored values in, and the bytes of a JSON or BSON reply out."""

Errors = Literal["raise", "return"]
"""What comes of a request in which single inputs fail: an error, or an `ItemError` in the place of each."""


class Predicts(Protocol):
    """What the server needs of a model; `superduper_nb.models.Predictor` is one.

    An integer attribute ``batch_size``, where there is one, says up to how many inputs are joined into a batch.
    """

    def predict_many(self, xs: Sequence[Any], /) -> list[Any]:
        """Return one output for each input; an `superduper_nb.models.ItemError` for each that failed."""


Load = Callable[[str, str, int], tuple[Predicts, int]]
"""``load(database, model, version)`` returns the model and its version, or raises `NotFoundError`."""

Current = Callable[[str, str], int]
"""``current(database, model)`` returns the newest version, or raises `NotFoundError`; called once a batch."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one request.

    Attributes
    ----------
    outputs : list or bytes
        One output for each input, in order; for a form of bytes, a JSON array of them or a BSON ``{"outputs": […]}``.
    version : int
        Version of the model that made them (all of them).
    took_ms : float
        From the request to the answer, waiting included.
    """

    outputs: Any
    version: int
    took_ms: float


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of what a model yields for one input.

    Attributes
    ----------
    pieces : list
        What it yielded since the slice before: objects, or the bytes of each as JSON or BSON ``{"output": …}``.
    done : bool
        It has ended.
    version : int
        Version of the model.
    """

    pieces: list[Any]
    done: bool
    version: int


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory; ``rss`` is by how many bytes the process grew when it was loaded."""

    database: str
    model: str
    version: int
    rss: int
