"""One hash for the same content, also after a cell was run again or the kernel restarted.

A pickle's own bytes won't do: functions carry the name of the cell's temporary file and the modules that happen to be
imported already, classes a random tracking id, tensors the address of their memory, modules whether they were applied
since (``eval()``), and a text that comes twice is written once or twice, as it is one object or two (which is another
matter after it was loaded). This pickler (whose output is only hashed, never loaded) leaves those out.
"""

from __future__ import annotations

import hashlib
import sys
from collections import ChainMap
from types import CodeType
from typing import Any, ClassVar

import cloudpickle
from cloudpickle import cloudpickle as internals

from superduper_nb.components.local_code import local_code_by_value

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

    def __init__(self, file: Any, **options: Any) -> None:
        super().__init__(file, **options)
        self._texts: dict[tuple[type, Any], Any] = {}

    def persistent_id(self, obj: Any) -> Any:
        """Have equal texts written as one object, and of a tensor's storage the hash of its bytes."""
        if type(obj) in (str, bytes):
            return self._texts.setdefault((type(obj), obj), obj)
        return _storage(obj) if "torch" in sys.modules else None

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
        attributes, slots = rest[0]
        rest[0] = {name: value for name, value in attributes.items() if name != "__firstlineno__"}, slots
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
    """Return what stands for the numbers of a tensor, however they lie; None where it is made of other tensors."""
    import torch

    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
        return None
    numbers = tensor.detach().cpu().resolve_conj().resolve_neg()
    row = numbers.contiguous().as_strided((numbers.numel(),), (1,))  # an empty one may have any strides
    digest = _of_bytes(row.view(torch.uint8))
    return str, (f"{type(tensor).__name__} {tensor.dtype} {tuple(tensor.shape)} {tensor.requires_grad} {digest}",)


def _storage(obj: Any) -> str | None:
    import torch

    if not isinstance(obj, (torch.TypedStorage, torch.UntypedStorage)):
        return None
    storage = obj if isinstance(obj, torch.UntypedStorage) else obj._untyped_storage
    return f"storage {_of_bytes(torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage).cpu())}"


def _of_bytes(numbers: Any) -> str:
    return hashlib.sha256(numbers.numpy()).hexdigest()


def fingerprint(obj: Any) -> str:
    """Return the SHA-256 of an object's content, as hexadecimal digits."""
    sink = _HashSink()
    with local_code_by_value():  # as it is stored, so that other code in a module beside the notebook is other content
        _HashPickler(sink, protocol=5).dump(obj)
    return sink.hash.hexdigest()
