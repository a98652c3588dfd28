"""What a model gets of a document: the value at its key, with outputs of other models in place of raw values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any, Final

from superduper_nb.documents.paths import BASE, get_path, output_path, set_path, token_path
from superduper_nb.errors import InvalidInputError

__all__ = ["fields_read", "input_of", "seen_by_models"]

_MISSING: Final = object()
_PRIVATE: Final = ("_outputs", "_sddb", "_like", "_fold", "_score", "_distance")


def fields_read(keys: Iterable[str], features: Mapping[str, str]) -> dict[str, int] | None:
    """Return the projection that reading these keys needs; None for whole documents."""
    paths = set(keys)
    if BASE in paths:
        return None
    for key, model in features.items():
        paths |= {output_path(key, model), token_path(model, key)}
    return dict.fromkeys(sorted(_shortest(paths)), 1)


def _shortest(paths: set[str]) -> set[str]:
    """Leave out what lies below another path: MongoDB refuses a projection that names both."""
    return {path for path in paths if not any(path.startswith(f"{other}.") for other in paths)}


def input_of(
    document: Mapping[str, Any], key: str, features: Mapping[str, str], versions: Mapping[str, int], missing: Any
) -> Any:
    """Return the raw input for a key.

    Parameters
    ----------
    features : mapping of str to str
        For each of these keys, the output of that model stands in the place of the raw value.
    versions : mapping of str to int
        For each key with a feature, the model version whose output counts; another one's is as good as missing.
    missing : object
        Returned where the key, or an upstream output, is not there.
    """
    outputs = {}
    for feature, model in features.items():
        token = get_path(document, token_path(model, feature), None)
        output = get_path(document, output_path(feature, model), missing)
        if output is missing or token is None or token["v"] != versions[feature]:
            return missing
        outputs[feature] = output
    if key in outputs:
        return outputs[key]
    if key != BASE:
        return get_path(document, key, missing)
    whole = {name: value for name, value in document.items() if name not in _PRIVATE}
    return {**whole, **outputs}


def seen_by_models(
    document: Mapping[str, Any], features: Mapping[str, str], versions: Mapping[str, int]
) -> dict[str, Any]:
    """Return a whole document as models see it: features in their places, without the package's own fields.

    Raises
    ------
    InvalidInputError
        An upstream output is not there.
    """
    seen = {name: value for name, value in document.items() if name not in _PRIVATE}
    if features:
        seen = deepcopy(seen)
    for key, model in features.items():
        output = input_of(document, key, {key: model}, versions, _MISSING)
        if output is _MISSING:
            raise InvalidInputError(f"It has no current output of {model!r} on {key!r}.")
        set_path(seen, key, output)
    return seen
