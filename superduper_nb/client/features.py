"""Read documents with model outputs in the place of raw values: ``find(features={"text": "minilm"})``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from superduper_nb.documents.paths import BASE, OUTPUTS, check_path, get_path, output_path, set_path, token_path
from superduper_nb.errors import InvalidInputError
from superduper_nb.jobs.watchers import overlap

if TYPE_CHECKING:
    from superduper_nb.client.workspace import Workspace

__all__ = ["Features", "excludes", "head"]

_TOKENS = "_sddb"


class Features:
    """Which outputs stand in the place of which values.

    Parameters
    ----------
    workspace : Workspace
        Of the database.
    collection : str
        Where the watchers are that compute them.
    features : mapping of str to str
        For each key, the model whose output on it is read.

    Raises
    ------
    NotFoundError
        No watcher computes one of them.
    """

    def __init__(self, workspace: Workspace, collection: str, features: Mapping[str, str]) -> None:
        if BASE in features:
            raise InvalidInputError("features= names a model for each key; '_base', the whole document, is none.")
        self._versions: dict[str, tuple[str, int]] = {}
        for key, model in features.items():
            workspace.store.get("watcher", f"{model}/{check_path(key)}", collection=collection)
            self._versions[key] = model, workspace.store.get("model", model).version

    def projection(self, projection: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Return what to ask MongoDB for: the outputs, and what tells their versions, beside what was asked for."""
        if projection is None:
            return None
        others = {path: value for path, value in projection.items() if head(path) not in (OUTPUTS, _TOKENS)}
        return (others or None) if excludes(projection) else {**others, OUTPUTS: 1, _TOKENS: 1}

    def put(self, document: dict[str, Any], projection: Mapping[str, Any] | None) -> None:
        """Put outputs in the place of values; None where there is no output of the model's present version."""
        for key, (model, version) in self._versions.items():
            if projection is None or _shows(projection, key):
                token = get_path(document, token_path(model, key))
                current = token is not None and token["v"] == version
                with suppress(InvalidInputError):  # something else stands where the key leads
                    set_path(document, key, get_path(document, output_path(key, model)) if current else None)
        if projection is not None and excludes(projection) == any(head(path) == OUTPUTS for path in projection):
            document.pop(OUTPUTS, None)  # it was read for this only


def head(path: str) -> str:
    """Return the field at the top of a path."""
    return path.partition(".")[0]


def excludes(projection: Mapping[str, Any]) -> bool:
    """Say whether a projection names what is left out."""
    return all(value in (0, False) for path, value in projection.items() if path != "_id" or len(projection) == 1)


def _shows(projection: Mapping[str, Any], key: str) -> bool:
    if excludes(projection):
        return not any(key == path or key.startswith(f"{path}.") for path in projection)
    return any(overlap(path, key) for path in projection)
