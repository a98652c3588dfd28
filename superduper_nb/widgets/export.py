"""Documents as pandas, CSV or JSON, and as files of these kinds."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Final

from superduper_nb.errors import InvalidInputError, did_you_mean
from superduper_nb.widgets import columns

__all__ = ["FORMATS", "checked_path", "save", "to_csv", "to_json", "to_pandas", "written"]

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


def save(documents: Iterable[dict[str, Any]], path: str | Path, *, overwrite: bool = False) -> int:
    """Write `documents` to a file whose suffix says how; return how many they were.

    JSON Lines and JSON are written as they come, CSV and Parquet when all are there. The file appears when it is whole:
    whatever ends this before leaves the old one, or none.

    Parameters
    ----------
    documents : iterable of dict
        A result, or a cursor.
    path : str or Path
        Ends in ``.csv``, ``.json``, ``.jsonl`` or ``.parquet``.
    overwrite : bool, default False
        Whether an existing file may be replaced.

    Raises
    ------
    InvalidInputError
        The suffix is another one, the file exists, or a value does not go into the columns of a Parquet file.
    """
    target = checked_path(path, overwrite=overwrite)
    with NamedTemporaryFile(dir=target.parent, prefix=f".{target.stem}-", suffix=target.suffix, delete=False) as made:
        part = Path(made.name)
    try:
        count = FORMATS[target.suffix.lower()](documents, part)
        mask = os.umask(0)
        os.umask(mask)
        part.chmod(0o666 & ~mask)  # as any new file; a temporary one is its owner's alone
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return count


def checked_path(path: str | Path, *, overwrite: bool) -> Path:
    """Return `path` where a file may be written to it, of a kind that we write."""
    target = Path(path).expanduser()
    if (suffix := target.suffix.lower()) not in FORMATS:
        hint = did_you_mean(suffix, FORMATS) if suffix else ""
        raise InvalidInputError(
            f"the name of the file says its kind: {', '.join(FORMATS)}; given {target.name!r}.{hint}"
        )
    if not target.parent.is_dir():
        raise InvalidInputError(f"there is no folder {str(target.parent)!r}: make it first.")
    if target.exists() and not overwrite:
        raise InvalidInputError(f"{str(target)!r} exists: give another name, or --overwrite (overwrite=True).")
    return target


def _save_lines(documents: Iterable[dict[str, Any]], path: Path) -> int:
    with path.open("w", encoding="utf-8", newline="") as file:
        return sum(bool(file.write(f"{_one(document)}\n")) for document in documents)


def _save_json(documents: Iterable[dict[str, Any]], path: Path) -> int:
    count = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        for document in documents:
            file.write(f"{',' if count else '['}\n{_one(document)}")
            count += 1
        file.write("\n]\n" if count else "[]\n")
    return count


def _save_csv(documents: Iterable[dict[str, Any]], path: Path) -> int:
    kept = list(documents)
    path.write_text(to_csv(kept), encoding="utf-8", newline="")
    return len(kept)


def _save_parquet(documents: Iterable[dict[str, Any]], path: Path) -> int:
    kept = list(documents)
    columns.to_parquet(kept, path)
    return len(kept)


FORMATS: Final[Mapping[str, Callable[[Iterable[dict[str, Any]], Path], int]]] = {
    ".csv": _save_csv,
    ".json": _save_json,
    ".jsonl": _save_lines,
    ".parquet": _save_parquet,
}
"""What writes files of each kind."""


def _one(document: dict[str, Any]) -> str:
    return to_json([document])[1:-1]


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
