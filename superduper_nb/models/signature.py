"""What a model takes and answers, as far as its annotations say: JSON schemas for the API's description."""

from __future__ import annotations

import typing
from collections.abc import Generator, Iterator
from typing import Any

__all__ = ["signature"]


def signature(obj: Any, preprocess: Any = None, postprocess: Any = None) -> dict[str, Any]:
    """Return the schemas of a model's ``input`` and ``output``; what is not known is left out.

    The input is what ``preprocess`` takes (or the model, where there is none), the output what ``postprocess`` returns.
    """
    takes = preprocess or getattr(obj, "preprocess", None) or obj
    gives = postprocess or getattr(obj, "postprocess", None) or obj
    known = {"input": _schema(_hint(takes, returned=False)), "output": _schema(_hint(gives, returned=True))}
    return {name: schema for name, schema in known.items() if schema is not None}


def _hint(step: Any, *, returned: bool) -> Any:
    """Return the annotation of a function's first argument, or of what it returns."""
    if isinstance(step, type) or hasattr(step, "forward"):  # batches go in and out there, not inputs and outputs
        return None
    function = step if hasattr(step, "__code__") or hasattr(step, "__func__") else getattr(step, "__call__", None)  # noqa: B004
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # an annotation may name what is only there for type checkers
        return None
    if returned:
        hint = hints.get("return")
        return typing.get_args(hint)[0] if typing.get_origin(hint) in (Iterator, Generator) else hint
    return next((hint for name, hint in hints.items() if name != "return"), None)


def _schema(hint: Any) -> dict[str, Any] | None:
    from pydantic import TypeAdapter

    if hint is None or hint is Any:
        return None
    if getattr(hint, "__name__", "") in ("ndarray", "Tensor"):
        return {"type": "array"}
    try:
        schema: dict[str, Any] = TypeAdapter(hint).json_schema()
    except Exception:  # a class that pydantic does not know
        return None
    return schema if "$defs" not in schema else None
