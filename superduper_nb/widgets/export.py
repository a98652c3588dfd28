"""Documents as pandas, CSV or JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from superduper_nb.errors import InvalidInputError

__all__ = ["to_csv", "to_json", "to_pandas", "written"]

Documents = Sequence[dict[str, Any]]


def to_pandas(documents: Documents) -> Any:
    """Return a data frame of `documents`."""
    try:
        pandas = import_module("pandas")
    except ImportError:
        raise InvalidInputError("to_pandas needs pandas, which is not installed: pip install pandas.") from None
    return pandas.DataFrame(list(documents))


def to_json(documents: Documents) -> str:
    """Return `documents` as a list in relaxed MongoDB Extended JSON; what JSON can't hold becomes text."""
    from bson.json_util import RELAXED_JSON_OPTIONS, dumps

    return dumps([_plain(document) for document in documents], json_options=RELAXED_JSON_OPTIONS, ensure_ascii=False)


def to_csv(documents: Documents) -> str:
    """Return `documents` as CSV with a header; nested values are JSON in their cell."""
    columns = list(dict.fromkeys(name for document in documents for name in document))
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(columns)
    writer.writerows([_field(document.get(name)) for name in columns] for document in documents)
    return buffer.getvalue()


def written(text: str, path: str | Path | None) -> str | None:
    """Write `text` to `path`, or return it where there is none."""
    if path is None:
        return text
    Path(path).write_text(text, encoding="utf-8", newline="")
    return None


def _field(value: Any) -> Any:
    if isinstance(value, dict | list | tuple) or hasattr(value, "tolist"):
        return to_json([{"v": value}])[len('[{"v": ') : -len("}]")]
    return value


def _plain(value: Any) -> Any:
    """Return `value` with arrays as lists, and what is no BSON type as its text."""
    from bson.json_util import default

    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if value is None or isinstance(value, str | int | float):
        return value
    try:
        default(value)
    except TypeError:
        return str(value)
    return value
