"""Preloaded by Dask workers: imports torch beside the worker's start, so that the first task does not wait for it."""

from __future__ import annotations

import threading
from importlib import import_module
from typing import Any


def dask_setup(worker: Any) -> None:
    """Start the import and return at once (called by Dask)."""
    threading.Thread(target=import_module, args=("torch",), name="warm-torch", daemon=True).start()
