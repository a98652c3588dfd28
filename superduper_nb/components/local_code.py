"""Modules beside the notebook, whose code travels with what uses it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import cloudpickle

__all__ = ["local_code_by_value"]

_register = threading.Lock()


def _local_modules() -> list[ModuleType]:
    """Find the user's own loaded modules: those under the working folder that no installation owns."""
    here = _folder(".")  # compared as text: there are thousands of modules
    installed = tuple(_folder(prefix) for prefix in {sys.prefix, sys.base_prefix})
    found = []
    for name, module in sys.modules.copy().items():  # in one piece: another thread may import
        file = getattr(module, "__file__", None)
        if not file or name == "__main__" or name.partition(".")[0] == "superduper_nb":
            continue
        if file.startswith(here) and not file.startswith(installed):
            found.append(module)
    return found


def _folder(path: str) -> str:
    return f"{Path(path).resolve()}{os.sep}"


@contextmanager
def local_code_by_value() -> Iterator[None]:
    """Have cloudpickle write code of the user's own modules as it writes that of a notebook: whole, not by name."""
    # The register is one for the whole process: one thread at a time, and what the user entered stays.
    modules = _local_modules()
    with _register:
        own = [module for module in modules if module.__name__ not in cloudpickle.list_registry_pickle_by_value()]
        for module in own:
            cloudpickle.register_pickle_by_value(module)
        try:
            yield
        finally:
            for module in own:
                cloudpickle.unregister_pickle_by_value(module)
