"""Variants of a torch module that answer sooner, and not quite the same: compiled, in bfloat16, with weights of 8 bits.

They are made where a model is loaded; what is stored is always the plain module.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Final, Literal, get_args

from superduper_nb.errors import InvalidInputError
from superduper_nb.models.hushing import torchao_hushed

__all__ = ["Optimize", "check_optimize", "compare", "optimized"]

Optimize = Literal["compile", "int8", "bf16"]
"""``compile``: by `torch.compile`; ``int8``: weights of linear layers in 8 bits, and what goes into these, as it comes
(torchao); ``bf16``: weights and activations in bfloat16."""

_DIFFERENT: Final = math.inf


def check_optimize(obj: object, how: object) -> None:
    """Raise `InvalidInputError` unless there may be such a variant of a model."""
    allowed = get_args(Optimize)
    if how not in allowed:
        raise InvalidInputError(f"optimize={how!r}: it must be one of {', '.join(map(repr, allowed))}, or None.")
    import torch

    if not isinstance(obj, torch.nn.Module):
        raise InvalidInputError(
            f"optimize={how!r} is for torch modules; a {type(obj).__name__} runs as it is: leave it out."
        )
    if how == "int8" and not any(isinstance(layer, torch.nn.Linear) for layer in obj.modules()):
        raise InvalidInputError(f"optimize='int8': this {type(obj).__name__} has no linear layer to make smaller.")
    if how == "int8" and find_spec("torchao") is None:
        raise InvalidInputError("optimize='int8' needs torchao: pip install 'superduper-nb[int8]'.")


def optimized(module: Any, how: Optimize) -> Any:
    """Return the variant of a module that is on its device, in evaluation mode; `module` itself is not changed."""
    import torch

    if how == "compile":
        return torch.compile(module, dynamic=True)  # or every size of batch would be compiled by itself
    variant = copy.deepcopy(module)
    if how == "bf16":
        return _in_bfloat16(variant)
    with torchao_hushed():
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(variant, Int8DynamicActivationInt8WeightConfig())
    return variant


def _in_bfloat16(module: Any) -> Any:
    """Have a module compute in bfloat16; it is given, and answers, float32 as before."""
    import torch

    def enter(_: Any, args: Any, kwargs: Any) -> Any:
        return _cast(args, torch.bfloat16), _cast(kwargs, torch.bfloat16)

    def leave(_: Any, args: Any, output: Any) -> Any:
        return _cast(output, torch.float32)

    module.to(torch.bfloat16)
    module.register_forward_pre_hook(enter, with_kwargs=True)
    module.register_forward_hook(leave)
    return module


def _cast(value: Any, dtype: Any) -> Any:
    """Return a nested value with its floating tensors in another type."""
    if hasattr(value, "is_floating_point"):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: _cast(item, dtype) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_cast(item, dtype) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_cast(item, dtype) for item in value)
    return value


def compare(plain: Sequence[Any], variant: Sequence[Any]) -> dict[str, Any]:
    """Say how far the outputs of a variant are from those of the plain model.

    Returns
    -------
    dict
        ``examples``, how many were compared; ``max_difference``, the largest between two numbers (`inf` where only one
        is finite); ``differing``, how many outputs differ in anything but numbers (a label, say).
    """
    largest, differing = 0.0, 0
    for one, other in zip(plain, variant, strict=True):
        numbers, labels = _parts(one)
        others, other_labels = _parts(other)
        differing += labels != other_labels or len(numbers) != len(others)
        largest = max([largest, *map(_distance, numbers, others)])
    return {"examples": len(plain), "max_difference": largest, "differing": differing}


def _distance(one: float, other: float) -> float:
    if math.isfinite(one) and math.isfinite(other):
        return abs(one - other)
    return 0.0 if one == other or (math.isnan(one) and math.isnan(other)) else _DIFFERENT


def _parts(output: Any) -> tuple[list[float], list[Any]]:
    """Return the numbers of an output, and all else in it."""
    leaves = list(_leaves(output))
    numbers = [float(leaf) for leaf in leaves if isinstance(leaf, (int, float))]
    return numbers, [leaf for leaf in leaves if not isinstance(leaf, (int, float))]


def _leaves(value: Any) -> Iterator[Any]:
    if hasattr(value, "detach"):
        value = value.detach().float().cpu()
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        for key in value:
            yield key
            yield from _leaves(value[key])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value
