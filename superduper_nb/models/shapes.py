"""A model of vectors has one length: what its version gave first, in whichever process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pymongo.errors import PyMongoError

from superduper_nb.components.store import Component, ComponentStore
from superduper_nb.errors import ModelError

__all__ = ["OneShape"]


class OneShape:
    """A last step that refuses an output of another shape than the first one of this version had.

    Parameters
    ----------
    store : ComponentStore
        Where the shape is noted, for all processes.
    model : Component
        Which version.
    step : callable, optional
        The model's own last step, which goes before.
    """

    def __init__(self, store: ComponentStore, model: Component, step: Callable[[Any], Any] | None) -> None:
        self._store, self._model, self._step = store, model, step
        self._first: list[int] | None = None

    def __call__(self, row: Any) -> Any:
        """Return the output made of a row.

        Raises
        ------
        ModelError
            It has another shape.
        """
        output = row if self._step is None else self._step(row)
        if (shape := _shape(output)) is None:  # no vector at all: the type says so
            return output
        if self._first is None:
            self._first = self._noted(shape)
        if shape != self._first:
            raise ModelError(
                f"{self._model.id} answered shape {tuple(shape)}, and its first output had {tuple(self._first)}: "
                "a model of type 'vector' has one shape. Make them equal in postprocess, or register it without type=."
            )
        return output

    def _noted(self, shape: list[int]) -> list[int]:
        try:
            noted: list[int] = self._store.note_first(self._model, "shape", shape)
        except PyMongoError:  # away, or not ours to write: then at least all of this process are alike
            return shape
        return noted


def _shape(output: Any) -> list[int] | None:
    if hasattr(output, "shape"):
        return [int(side) for side in output.shape]
    return [len(output)] if isinstance(output, (list, tuple)) else None
