"""What the process that runs models asks of MongoDB.

It calls these with the URI bound, or None for that of its environment, and keeps its connection and loaders.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any, Final

from pymongo import MongoClient

from superduper_nb.cluster.mongod import connect_options
from superduper_nb.documents.types import Type
from superduper_nb.errors import ModelError, SuperduperError
from superduper_nb.models.apply import Predictor
from superduper_nb.models.loading import Loader

__all__ = ["MONGODB_URI", "current_version", "load_model", "registered_types"]

MONGODB_URI: Final = "SUPERDUPER_MONGODB__URI"
"""Where workers find MongoDB."""


@cache
def _child_loader(uri: str | None, database: str) -> Loader:
    return Loader(_child_client(uri)[database])


@cache
def _child_client(uri: str | None) -> MongoClient[dict[str, Any]]:
    return MongoClient(uri or os.environ[MONGODB_URI], **connect_options())


def load_model(uri: str | None, database: str, model: str, version: int | None) -> tuple[Predictor, int]:
    """Load a model in the process that serves it; the model server alone decides how long it is kept."""
    loader = _child_loader(uri, database)
    try:
        component = loader.store.get("model", model, version=version)
        return loader.built(component), component.version
    except SuperduperError:
        raise
    except Exception as error:
        raise ModelError(f"The model {model!r} can't be loaded: {type(error).__name__}: {error}") from error


def registered_types(uri: str | None, database: str) -> dict[str, Type]:
    """Return the types that a database's documents may have, the built-in ones among them."""
    return _child_loader(uri, database).types()


def current_version(uri: str | None, database: str, model: str) -> int:
    """Return the version of a model that is current now."""
    return _child_loader(uri, database).store.newest("model", model)
