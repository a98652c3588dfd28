"""The numbers of torch tensors apart from the pickle of what holds them, in the format of safetensors.

A pickle says how a tensor lies in its storage (shape, strides, offset, whether it is a parameter) and names the
storage; the storages are written here, each once. So tensors that share one do so again when they are read: tied
weights, views. That is how `torch.save` does it, with a format that others read in the place of torch's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

__all__ = ["Reader", "Writer"]

_KINDS: Final = {
    *("float64", "float32", "float16", "bfloat16"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
}
"""What is written as what it is, in its shape; the bytes of anything else as bytes."""

Place = tuple[str, Any, str]
"""What stands in a pickle for a storage: its name here, the dtype of its elements, its device."""


class Writer:
    """Takes the storages out of what is pickled: a pickler asks its `persistent_id` about each object."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._found: dict[str, torch.Tensor] = {}
        self._whole: dict[int, torch.Tensor] = {}

    def persistent_id(self, obj: Any) -> Place | None:
        """Return what stands for a storage; None for anything else."""
        import torch

        if isinstance(obj, torch.Tensor):
            if _covers_its_storage(obj):
                self._whole.setdefault(obj.untyped_storage()._cdata, obj.detach())
        elif isinstance(obj, torch.TypedStorage):
            return self._place(obj._untyped_storage, obj.dtype)
        elif isinstance(obj, torch.UntypedStorage):
            return self._place(obj, torch.uint8)  # as torch.load gives it back
        return None

    def _place(self, storage: torch.UntypedStorage, dtype: Any) -> Place:
        name = self._names.setdefault(storage._cdata, str(len(self._names)))
        if name not in self._found:
            tensor = self._whole.get(storage._cdata)
            self._found[name] = _bytes(storage) if tensor is None else tensor
        return name, dtype, str(storage.device)

    def data(self) -> bytes | None:
        """Return the storages as safetensors writes them; None where there was none."""
        from safetensors.torch import save

        return save(self._found) if self._found else None


def _covers_its_storage(tensor: torch.Tensor) -> bool:
    import torch

    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout != torch.strided or tensor.is_meta:
        return False
    known = str(tensor.dtype).removeprefix("torch.") in _KINDS
    return known and tensor.is_contiguous() and tensor.nbytes == tensor.untyped_storage().nbytes()


def _bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    import torch

    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


class Reader:
    """Gives an unpickler the storages: it asks `persistent_load` for what stands in their place.

    Parameters
    ----------
    data : bytes
        What a `Writer` wrote.
    """

    def __init__(self, data: bytes) -> None:
        from safetensors.torch import load

        self._tensors = load(data)
        self._storages: dict[str, torch.UntypedStorage] = {}

    def persistent_load(self, place: Place) -> Any:
        """Return a storage, on its device or, where there is none such here, in the processor's memory."""
        import torch

        name, dtype, device = place
        if name not in self._storages:  # a copy of its own: what safetensors reads can't be resized
            self._storages[name] = _moved(self._tensors.pop(name).clone().untyped_storage(), device)
        storage = self._storages[name]
        return torch.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)  # type: ignore[no-untyped-call]


def _moved(storage: torch.UntypedStorage, device: str) -> torch.UntypedStorage:
    import torch

    try:
        return storage if device == "cpu" else storage.to(device=torch.device(device))
    except (RuntimeError, AssertionError):
        return storage
