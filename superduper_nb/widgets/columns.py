"""Documents as columns of one type each: Arrow, polars, Parquet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from superduper_nb.errors import InvalidInputError

__all__ = ["to_arrow", "to_numpy", "to_parquet", "to_polars"]

Documents = Sequence[Mapping[str, Any]]

_KEPT: Final = (bool, int, float, str, bytes, date, datetime)


def to_arrow(documents: Documents) -> Any:
    """Return a :class:`pyarrow.Table`."""
    pyarrow = _needed("pyarrow", "to_arrow")
    return pyarrow.table(_columns(documents, pyarrow.array))


def to_polars(documents: Documents) -> Any:
    """Return a :class:`polars.DataFrame`."""
    polars = _needed("polars", "to_polars")
    return polars.DataFrame(_columns(documents, lambda values: polars.Series(values=values, strict=True)))


def to_numpy(documents: Documents, field: str) -> Any:
    """Return a field of all documents as one array, its first axis the documents."""
    import numpy

    from superduper_nb.documents.paths import get_path

    values = [get_path(document, field) for document in documents]
    if missing := sum(value is None for value in values):
        raise InvalidInputError(f"{missing} of {len(values)} documents have no {field!r}: an array has no gaps.")
    try:
        return numpy.stack([numpy.asarray(value) for value in values]) if values else numpy.empty(0)
    except ValueError as error:
        raise InvalidInputError(f"the values of {field!r} do not go into one array: {error}.") from error


def to_parquet(documents: Documents, path: str | Path) -> None:
    """Write a Parquet file."""
    _needed("pyarrow", "to_parquet")
    import_module("pyarrow.parquet").write_table(to_arrow(documents), str(path))


def _needed(package: str, method: str) -> Any:
    try:
        return import_module(package)
    except ImportError:
        raise InvalidInputError(f"{method} needs {package}, which is not installed: pip install {package}.") from None


def _columns(documents: Documents, build: Callable[[list[Any]], Any]) -> dict[str, Any]:
    names = dict.fromkeys(str(name) for document in documents for name in document)
    return {name: _column(name, [_plain(document.get(name)) for document in documents], build) for name in names}


def _column(name: str, values: list[Any], build: Callable[[list[Any]], Any]) -> Any:
    try:
        return build(values)
    except Exception as error:  # each library has its own; all say that the values do not go into one column
        kinds = ", ".join(sorted({type(value).__name__ for value in values if value is not None}))
        raise InvalidInputError(
            f"the field {name!r} does not fit into one column (it holds {kinds}): leave it out with --fields -{name}, "
            "or use to_pandas()."
        ) from error


def _plain(value: Any) -> Any:
    """Return `value` as something that columns hold: numbers, texts, bytes, times, lists and documents of those."""
    if value is None or type(value) in _KEPT:
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()} or None  # Parquet knows no empty document
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if type(value).__name__ == "Decimal128":
        return str(value)
    if callable(getattr(value, "tolist", None)):  # arrays, tensors and their scalars
        return value.tolist()
    base: Any = next((kind for kind in (int, float, bytes) if isinstance(value, kind)), str)
    return base(value)  # a subclass (bson's Int64, Binary) as what it is underneath
