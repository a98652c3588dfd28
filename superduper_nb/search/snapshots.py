"""An index as one file, that is mapped into memory instead of read, and believed only where every byte is as written.

```
norms | alive | ids | skipped | codes of each segment | vectors, and room for more | footer | trailer
```

A graph is a file of its own beside it, so that the first answer need not wait until it is read.

The footer (BSON) says what the file is of, and where its sections are, each with its CRC-32; the trailer is a fixed
number of bytes that finds the footer and holds its SHA-256. Room behind the vectors is a hole that takes no disk; rows
that are added later go there, into pages of the process's own (the mapping is private, the file never changes).

A file is written aside and renamed, so a crash leaves the one before, or none. Nothing in it is ever unpickled.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import bson
import numpy as np
from bson import Int64
from bson.codec_options import CodecOptions

from superduper_nb.search.graph import SavedGraph
from superduper_nb.search.ids import packed_ids, unpacked_id
from superduper_nb.search.rows import Rows, View
from superduper_nb.search.scan import Segment, codes_of

__all__ = ["BadSnapshotError", "Snapshot", "read_snapshot", "remove_graphs", "write_snapshot"]

_MAGIC: Final = b"SDDBIDX1"
_TRAILER: Final = struct.Struct("<8sQQ32s")
_ALIGN: Final = 4096
_BLOCK: Final = 2**24
_LEAST_ROOM: Final = 1024
_INT64: Final = 2**63

Options = CodecOptions[dict[str, Any]]
Bytes = memoryview | bytes


class BadSnapshotError(Exception):
    """The file is damaged, of something else, or of another version of this format."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An index at one moment of its collection.

    Attributes
    ----------
    identity : mapping
        Of what it is an index; a file with another identity is refused.
    stamp : str
        Its own name, unlike that of any other snapshot.
    token : mapping
        Of the change stream: the index holds everything up to there.
    skipped : list
        Identifiers of documents without a usable vector.
    rows : Rows
    """

    identity: Mapping[str, Any]
    stamp: str
    token: Mapping[str, Any]
    skipped: list[Any]
    rows: Rows


# --- writing -------------------------------------------------------------------------------------------------------


def write_snapshot(path: Path, snapshot: Snapshot, view: View, options: Options) -> None:
    """Write what `view` shows of the snapshot's rows, in the place of what is there.

    Raises
    ------
    OSError
        The disk is full, or the folder not writable; what was there is still there.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    graph = view.saved if view.graph is None else view.graph.kept(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            _write(file, snapshot, view, graph, options)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    remove_graphs(path, but=graph)
    if os.name == "posix":
        _sync_folder(path.parent)


def remove_graphs(path: Path, but: SavedGraph | None = None) -> None:
    """Remove the graphs that are saved beside a snapshot, or all but one."""
    for other in path.parent.glob(f"{path.stem}-*.graph"):
        if but is None or other != but.path:
            other.unlink(missing_ok=True)


def _write(file: BinaryIO, snapshot: Snapshot, view: View, graph: SavedGraph | None, options: Options) -> None:
    rows, count = view.rows, view.count
    kind, ids = _ids_to_bytes(rows.ids[:count], options)
    alive = np.ones(count, dtype=bool) if view.alive is None else view.alive
    codes = [segment.codes.to_bytes() for segment in view.segments]
    skipped = _list_to_bytes(snapshot.skipped, options)
    vectors = _bytes_of(rows.vectors[:count])
    parts: list[Bytes] = [_bytes_of(rows.norms[:count]), _bytes_of(alive), ids, skipped, *codes, vectors]
    sections = [_section(file, part) for part in parts]
    dimension = rows.vectors.shape[1]
    capacity = count + max(count // 4, _LEAST_ROOM)
    begin = file.seek(_aligned(sections[-1][0] + capacity * dimension * 4))
    footer = bson.encode(
        {
            "identity": dict(snapshot.identity),
            "stamp": snapshot.stamp,
            "token": dict(snapshot.token),
            "count": count,
            "dimension": dimension,
            "capacity": capacity,
            "depth": view.depth,
            "segments": [[segment.start, segment.stop] for segment in view.segments],
            "graph": None if graph is None else {**asdict(graph), "path": graph.path.name},
            "ids": kind,
            "sections": [[Int64(number) for number in section] for section in sections],
        }
    )
    file.write(footer)
    file.write(_TRAILER.pack(_MAGIC, begin, len(footer), hashlib.sha256(footer).digest()))


def _section(file: BinaryIO, data: Bytes) -> tuple[int, int, int]:
    """Write one at the next page; return where it is, how long, and its checksum."""
    begin, checksum, view = file.seek(_aligned(file.tell())), 0, memoryview(data)
    for at in range(0, len(view), _BLOCK):
        block = view[at : at + _BLOCK]
        checksum = zlib.crc32(block, checksum)
        file.write(block)
    return begin, len(view), checksum


def _bytes_of(array: Any) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _aligned(position: int) -> int:
    return -(-position // _ALIGN) * _ALIGN


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the rename itself
    finally:
        os.close(descriptor)


# --- reading -------------------------------------------------------------------------------------------------------


def read_snapshot(path: Path, identity: Mapping[str, Any], options: Options) -> Snapshot:
    """Map a file.

    Raises
    ------
    FileNotFoundError
        There is none.
    BadSnapshotError
        It is not what it should be: to be discarded.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise BadSnapshotError("no regular file")
        footer = _footer(file)
        if footer["identity"] != identity:
            raise BadSnapshotError("of another index, model version or format")
        skipped, rows = _sections(file, footer, options)
    if graph := footer.get("graph"):
        rows.saved = SavedGraph(**{**graph, "path": path.with_name(graph["path"])})
        rows.planned = rows.saved.stop
    return Snapshot(identity, footer["stamp"], footer["token"], skipped, rows)


def _footer(file: BinaryIO) -> dict[str, Any]:
    size = os.fstat(file.fileno()).st_size
    if size < _TRAILER.size:
        raise BadSnapshotError("cut off")
    file.seek(size - _TRAILER.size)
    magic, begin, length, digest = _TRAILER.unpack(file.read(_TRAILER.size))
    if magic != _MAGIC or begin + length + _TRAILER.size != size:
        raise BadSnapshotError("cut off, or not a snapshot of this version")
    file.seek(begin)
    data = file.read(length)
    if hashlib.sha256(data).digest() != digest:
        raise BadSnapshotError("its footer is damaged")
    return bson.decode(data)


def _sections(file: BinaryIO, footer: Mapping[str, Any], options: Options) -> tuple[list[Any], Rows]:
    count, capacity, dimension = footer["count"], footer["capacity"], footer["dimension"]
    *before, last = footer["sections"]
    norms, alive, ids, skipped, *codes = _checked(file, before)
    vectors = np.memmap(file, dtype=np.float32, mode="c", offset=last[0], shape=(capacity, dimension))
    if _checksum(_bytes_of(vectors[:count])) != last[2]:
        raise BadSnapshotError("its vectors are damaged")
    rows = Rows(
        np.asarray(vectors),
        np.empty(capacity, dtype=np.float32),
        np.zeros(capacity, dtype=bool),
        _ids_of_bytes(footer["ids"], ids, options),
        count,
        tuple(
            Segment(start, stop, codes_of(data, stop - start))
            for (start, stop), data in zip(footer["segments"], codes, strict=True)
        ),
        footer["depth"],
        filed=count,
        mapping=cast("mmap.mmap", vectors.base),
    )
    rows.norms[:count] = np.frombuffer(norms, dtype=np.float32)
    rows.alive[:count] = np.frombuffer(alive, dtype=bool)
    return _list_of_bytes(skipped, options), rows


def _checked(file: BinaryIO, sections: Iterable[tuple[int, int, int]]) -> Iterator[bytes]:
    for begin, length, checksum in sections:
        file.seek(begin)
        data = file.read(length)
        if zlib.crc32(data) != checksum:
            raise BadSnapshotError("a section is damaged")
        yield data


def _checksum(view: memoryview) -> int:
    checksum = 0
    for at in range(0, len(view), _BLOCK):
        checksum = zlib.crc32(view[at : at + _BLOCK], checksum)
    return checksum


# --- identifiers ---------------------------------------------------------------------------------------------------


def _ids_to_bytes(packed: list[Any], options: Options) -> tuple[str, bytes]:
    kinds = set(map(type, packed))
    if kinds == {bytes}:
        return "ObjectId", b"".join(packed)
    if kinds == {int} and min(packed) >= -_INT64 and max(packed) < _INT64:
        return "int", np.array(packed, dtype="<i8").tobytes()
    return "any", _list_to_bytes(map(unpacked_id, packed), options)


def _ids_of_bytes(kind: str, data: bytes, options: Options) -> list[Any]:
    if kind == "ObjectId":
        return list(np.frombuffer(data, dtype="V12").tolist())
    if kind == "int":
        return list(np.frombuffer(data, dtype="<i8").tolist())
    return packed_ids(_list_of_bytes(data, options))


def _list_to_bytes(values: Iterable[Any], options: Options) -> bytes:
    return bson.encode({"": list(values)}, codec_options=options)


def _list_of_bytes(data: bytes, options: Options) -> list[Any]:
    return list(bson.decode(data, codec_options=options)[""])
