"""What enters and leaves the model server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

if TYPE_CHECKING:
    from superduper_nb.documents.types import Type

__all__ = [
    "PICKLED",
    "Body",
    "Current",
    "Errors",
    "Form",
    "Load",
    "LoadedModel",
    "Prediction",
    "Predicts",
    "Slice",
    "Types",
    "UnreadBody",
]

Form = Literal["objects", "arrays", "json", "bson"]
"""How inputs and outputs look: Python objects; the same, but arrays in the place of tensors, which can be read without
torch; or stored values in, and the bytes of a JSON or BSON reply out."""

PICKLED: Final[frozenset[Form]] = frozenset({"objects", "arrays"})
"""Those that are pickled between the processes."""

Errors = Literal["raise", "return"]
"""What comes of a request in which single inputs fail: an error, or an `ItemError` in the place of each."""


class Predicts(Protocol):
    """What the server needs of a model; `superduper_nb.models.Predictor` is one.

    An integer attribute ``batch_size``, where there is one, says up to how many inputs are joined into a batch. Where a
    model is ``compiled``, it is served until its next version is ready, too.
    """

    def predict_many(self, xs: Sequence[Any], /) -> list[Any]:
        """Return one output for each input; an `superduper_nb.models.ItemError` for each that failed."""


Load = Callable[[str, str, int], tuple[Predicts, int]]
"""``load(database, model, version)`` returns the model and its version, or raises `NotFoundError`."""

Current = Callable[[str, str], int]
"""``current(database, model)`` returns the newest version, or raises `NotFoundError`; called for each batch."""

Types = Callable[[str], "Mapping[str, Type]"]
"""``types(database)`` returns the types that inputs and outputs over HTTP may have, by name."""


@dataclass(frozen=True, slots=True)
class Body:
    """What a request asks for."""

    inputs: list[Any]
    version: int | None = None
    errors: Errors = "raise"


@dataclass(frozen=True, slots=True)
class UnreadBody:
    """A request as it came, so long that reading it would hold up whoever does.

    Attributes
    ----------
    data : bytes
        What came.
    read : callable
        Returns the `Body` that bytes hold, or raises `InvalidInputError`; a function that a pickle can name.
    """

    data: bytes
    read: Callable[[bytes], Body]


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
