"""One hash for the same content, also after a cell was run again or the kernel restarted.

A pickle's own bytes won't do: functions carry the name of the cell's temporary file and the modules that happen to be
imported already, classes a random tracking id, tensors the address of their memory, modules whether they were applied
since (``eval()``). This pickler (whose output is only hashed, never loaded) leaves those out.
"""

from __future__ import annotations

import hashlib
import sys
from collections import ChainMap
from types import CodeType
from typing import Any, ClassVar

import cloudpickle
from cloudpickle import cloudpickle as internals

__all__ = ["fingerprint"]

_TRACKERS = {internals._make_skeleton_class: 4, internals._make_skeleton_enum: 5}
"""Position of the random class id in the arguments of the functions with which cloudpickle makes classes."""


class _HashSink:
    """A file that keeps only the hash of what was written."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return memoryview(data).nbytes


def _code(code: CodeType) -> Any:
    return internals._code_reduce(code.replace(co_filename="", co_firstlineno=1))


class _HashPickler(cloudpickle.Pickler):  # type: ignore[misc]
    dispatch_table: ClassVar[Any] = ChainMap({CodeType: _code}, cloudpickle.Pickler.dispatch_table)

    def reducer_override(self, obj: Any) -> Any:
        if "torch" in sys.modules and (made_of := _of_torch(obj)) is not None:
            return made_of
        if "numpy" in sys.modules and (array := _array(obj)) is not None:
            return array
        return _steady(super().reducer_override(obj))


def _steady(reduced: Any) -> Any:
    """Take out of cloudpickle's description of a class or function what changes between runs."""
    if not isinstance(reduced, tuple):
        return reduced
    make, arguments, *rest = reduced
    if make in _TRACKERS:
        at = _TRACKERS[make]
        arguments = (*arguments[:at], "", *arguments[at + 1 :])
    elif make is internals._make_function:
        attributes, slots = rest[0]
        rest[0] = attributes, {**slots, "_cloudpickle_submodules": []}
    return (make, arguments, *rest)


def _of_torch(obj: Any) -> Any:
    """Return what stands for a tensor or a module; None for anything else."""
    import torch

    if isinstance(obj, torch.Tensor):
        return _tensor(obj)
    if isinstance(obj, torch.nn.Module) and type(obj).__reduce_ex__ is object.__reduce_ex__:
        return _without_mode(obj.__reduce_ex__(5))
    return None


def _without_mode(reduced: Any) -> Any:
    make, arguments, state, *rest = reduced
    if isinstance(state, dict):
        state = {name: value for name, value in state.items() if name != "training"}
    return (make, arguments, state, *rest)


def _array(obj: Any) -> Any:
    """Return what stands for an array of numbers; None for anything else."""
    import numpy as np

    if type(obj) is not np.ndarray or obj.dtype.hasobject:
        return None
    digest = hashlib.sha256(np.ascontiguousarray(obj).tobytes()).hexdigest()
    return str, (f"array {obj.dtype.descr} {obj.shape} {digest}",)


def _tensor(tensor: Any) -> Any:
    import torch

    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    digest = hashlib.sha256(raw).hexdigest()
    return str, (f"{type(tensor).__name__} {tensor.dtype} {tuple(tensor.shape)} {tensor.requires_grad} {digest}",)


def fingerprint(obj: Any) -> str:
    """Return the SHA-256 of an object's content, as hexadecimal digits."""
    sink = _HashSink()
    _HashPickler(sink, protocol=5).dump(obj)
    return sink.hash.hexdigest()
