"""Your notebook server as the cluster: documents in MongoDB, models in PyTorch, search by meaning.

>>> import superduper_nb as sd
>>> docs = sd.connect()["shop"]["products"]                                  # doctest: +SKIP
>>> docs.find({"price": {"$lt": 50}}, like={"text": "warm"}, n=10)           # doctest: +SKIP

Importing this package is cheap (no torch, dask, numpy, pymongo): each name below is resolved when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from superduper_nb._version import __version__

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from superduper_nb.client import Client, Collection, Cursor, Database, Job, Jobs, connect
    from superduper_nb.config import Config
    from superduper_nb.errors import SuperduperError
    from superduper_nb.models import ItemError, Predictor
    from superduper_nb.search import IndexOptions
    from superduper_nb.training import Trainer, Training

_HOMES = {
    "Client": "superduper_nb.client",
    "Collection": "superduper_nb.client",
    "Config": "superduper_nb.config",
    "Cursor": "superduper_nb.client",
    "Database": "superduper_nb.client",
    "IndexOptions": "superduper_nb.search",
    "ItemError": "superduper_nb.models",
    "Job": "superduper_nb.client",
    "Jobs": "superduper_nb.client",
    "Predictor": "superduper_nb.models",
    "SuperduperError": "superduper_nb.errors",
    "Trainer": "superduper_nb.training",
    "Training": "superduper_nb.training",
    "connect": "superduper_nb.client",
}

__all__ = [
    "Client",
    "Collection",
    "Config",
    "Cursor",
    "Database",
    "IndexOptions",
    "ItemError",
    "Job",
    "Jobs",
    "Predictor",
    "SuperduperError",
    "Trainer",
    "Training",
    "__version__",
    "connect",
]


def __getattr__(name: str) -> Any:
    if home := _HOMES.get(name):
        return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


def load_ipython_extension(ipython: InteractiveShell) -> None:
    """Register ``%sddb`` and ``%%sddb`` (``%load_ext superduper_nb``)."""
    from superduper_nb.magics.extension import load

    load(ipython)


def unload_ipython_extension(ipython: InteractiveShell) -> None:
    """Take ``%sddb`` out again (``%unload_ext superduper_nb``)."""
    from superduper_nb.magics.extension import unload

    unload(ipython)


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    from superduper_nb.server_ext.app import SuperduperApp

    return [{"module": "superduper_nb.server_ext.app", "app": SuperduperApp}]
