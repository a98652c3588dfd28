"""Before `create_model(optimize=…)` registers: plain model and variant on the same inputs, compared."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from superduper_nb.documents.inputs import input_of
from superduper_nb.errors import InvalidInputError
from superduper_nb.models import ItemError, Predictor
from superduper_nb.models.optimize import Optimize, compare

if TYPE_CHECKING:
    from superduper_nb.client.workspace import Workspace
    from superduper_nb.jobs.watchers import Watcher

__all__ = ["examples_for", "measured"]

_SAMPLE: Final = 16


def examples_for(workspace: Workspace, id: str, given: Sequence[Any] | None) -> list[Any]:
    """Return inputs to compare by: those given, else those of the version before, else what watchers give the model.

    Those of the version before come first: a cell that is run again is to register the same content.

    Raises
    ------
    InvalidInputError
        There are none.
    """
    if given is not None and not isinstance(given, (list, tuple)):
        raise InvalidInputError(f"examples={given!r:.80}: give a list of inputs.")
    if found := list(given or ()) or _examples_before(workspace, id) or _watched(workspace, id):
        return found
    raise InvalidInputError(
        f"optimize= compares its outputs with the plain model's: give examples=[…], a few inputs of {id!r} "
        "(no watcher applies it to documents that could be taken)."
    )


def _examples_before(workspace: Workspace, id: str) -> list[Any]:
    current = workspace.store.find("model", id)
    if current is None or not current.definition.get("optimize"):
        return []
    return list(workspace.loader.object(current)["examples"])


def _watched(workspace: Workspace, id: str) -> list[Any]:
    """Take inputs from documents that a watcher applies the model to."""
    for watcher in workspace.dependents(id):
        if watcher.model == id and not watcher.features and (found := _inputs(workspace, watcher)):
            return found
    return []


def _inputs(workspace: Workspace, watcher: Watcher) -> list[Any]:
    documents = workspace.store.database[watcher.collection].find(watcher.filter).sort("_id", 1).limit(_SAMPLE)
    stored = [input_of(document, watcher.key, {}, {}, None) for document in documents]
    inputs: list[Any] = workspace.codec.decode([value for value in stored if value is not None])
    return inputs


def measured(obj: Any, how: Optimize, examples: Sequence[Any], **options: Any) -> dict[str, Any]:
    """Apply a model and its variant to the same inputs; return how far they are from each other (see `compare`).

    Options are those of `superduper_nb.Predictor`.

    Raises
    ------
    InvalidInputError
        One of them fails, or the variant's numbers are not finite where the model's are.
    """
    # A copy: a module is moved to its device to be applied, and that of the user is theirs.
    plain = Predictor(copy.deepcopy(obj), **options)
    expected = _outputs(plain, examples, "The model")
    variant = _outputs(Predictor(plain.obj, **options, optimize=how), examples, f"With optimize={how!r} the model")
    found = compare(expected, variant)
    if found["max_difference"] == float("inf"):
        raise InvalidInputError(f"With optimize={how!r} the model answers numbers that are not finite: leave it out.")
    return found


def _outputs(predictor: Predictor, examples: Sequence[Any], who: str) -> list[Any]:
    outputs = predictor.predict_many(examples)
    for number, output in enumerate(outputs):
        if isinstance(output, ItemError):
            raise InvalidInputError(f"{who} fails on example {number}: {str(output).splitlines()[0]}")
    return outputs
