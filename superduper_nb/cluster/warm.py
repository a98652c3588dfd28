"""Preloaded by Dask workers: what a new process has to do before the first task comes."""

from __future__ import annotations

import threading
from importlib import import_module
from typing import Any

import numpy as np


def dask_setup(worker: Any) -> None:
    """Draw other random numbers than the process that this one was forked from; import torch, where it was not forked.

    The import goes on beside the worker's start: this returns at once (called by Dask).
    """
    np.random.seed()
    threading.Thread(target=import_module, args=("torch",), name="warm-torch", daemon=True).start()
