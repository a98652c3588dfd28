"""Preloaded by our own Dask workers: they give way to the notebook, and import torch beside their start."""

from __future__ import annotations

import os
import threading
from importlib import import_module
from typing import Any, Final

__all__ = ["NICENESS", "dask_setup"]

NICENESS: Final = 5
"""Less weight than the kernel, the server and the browser on the same cores, a third: whoever types notices no job."""


def dask_setup(worker: Any) -> None:
    """Make the worker's threads give way; start the import, so that the first task does not wait, and return at once.

    Called by Dask in the thread that starts all others of the worker, which are as nice as it is.
    """
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    threading.Thread(target=import_module, args=("torch",), name="warm-torch", daemon=True).start()
