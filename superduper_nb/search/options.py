"""How an index is kept and searched, where the default is not what is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from typing import Any, Final, Literal, get_args

from superduper_nb.errors import InvalidInputError, did_you_mean
from superduper_nb.search.measures import BUILTIN

__all__ = ["IndexOptions", "Kind"]

Kind = Literal["auto", "exact", "scan", "graph"]

_MAX_DEPTH: Final = 10_000
_MAX_SHARDS: Final = 256
_MAX_REPLICAS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexOptions:
    """Options of one semantic index; what is not given is chosen by size and by what the vectors are like.

    Attributes
    ----------
    kind : {"auto", "exact", "scan", "graph"}, default "auto"
        ``"exact"`` compares with every vector. ``"scan"`` looks at four bits a number and compares exactly with the
        best candidates. ``"auto"``: the scan from 4 million numbers (rows x dimension) on, where it finds the same.
        ``"graph"``: from 200 000 vectors on, a graph besides, for searches without a filter. It is built in minutes,
        takes about three times the memory of the vectors, and finds 0.99 of the nearest or more: for collections of
        which each version is searched some 100 000 times. Takes ``rabitqlib``.
    depth : int, optional
        Candidates of a scan, for ten results; default: twice what it takes on a sample of the vectors.
        Searches whose best are among the last candidates look at more.
    compact : bool, default False
        Keep the vectors in a file and only the codes of a scan in memory, an eighth of the size. What is found is the
        same; a search reads its candidates from the disk, unless the system still has them in its cache.
    shards : int, default 1
        Parts that it is split into, each in the memory of a Dask worker; searched side by side, merged exactly. Where
        everything runs in one process there are no workers, and it is in one piece.
    replicas : int, default 1
        Copies of each part: searches take turns at them, and one that is lost is missed by nobody.
    lost : {"wait", "partial"}, default "wait"
        What searches do while a part that was lost with its worker is loaded again: wait, or answer without it and say
        so (``partial`` of the reply).
    """

    kind: Kind = "auto"
    depth: int | None = None
    compact: bool = False
    shards: int = 1
    replicas: int = 1
    lost: Literal["wait", "partial"] = "wait"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InvalidInputError(f"kind={self.kind!r:.80}: it must be one of {', '.join(get_args(Kind))}.")
        if self.depth is not None and not _is_whole(self.depth, 10, _MAX_DEPTH):
            raise InvalidInputError(f"depth={self.depth!r:.80}: it must be a whole number from 10 to {_MAX_DEPTH}.")
        if not isinstance(self.compact, bool):
            raise InvalidInputError(f"compact={self.compact!r:.80}: it must be True or False.")
        for name, most in (("shards", _MAX_SHARDS), ("replicas", _MAX_REPLICAS)):
            if not _is_whole(value := getattr(self, name), 1, most):
                raise InvalidInputError(f"{name}={value!r:.80}: it must be a whole number from 1 to {most}.")
        if self.lost not in ("wait", "partial"):
            raise InvalidInputError(f"lost={self.lost!r:.80}: it must be 'wait' or 'partial'.")
        if self.kind == "exact" and (self.compact or self.depth):
            raise InvalidInputError("compact= and depth= are of a scan: they don't combine with kind='exact'.")
        if self.kind == "graph" and self.compact:
            raise InvalidInputError("compact= saves memory and kind='graph' takes more: choose one of them.")

    def check_measure(self, name: str) -> None:
        """Raise `InvalidInputError` where vectors under a measure of the user's own would need codes."""
        if name not in BUILTIN and (self.kind in ("scan", "graph") or self.compact or self.depth):
            raise InvalidInputError(
                f"The measure {name!r} is your own, so it is searched exactly: leave out kind={self.kind!r}, depth= "
                f"and compact=, or take one of {', '.join(BUILTIN)}."
            )

    def check_here(self) -> None:
        """Raise `InvalidInputError` where what it takes is not installed."""
        if self.kind == "graph" and find_spec("rabitqlib") is None:
            raise InvalidInputError(
                "kind='graph' takes rabitqlib: pip install 'superduper-nb[graph]', and again where the notebook server "
                "runs, if that is elsewhere."
            )

    @property
    def coded(self) -> bool:
        """Codes are wanted, whatever the size."""
        return self.kind == "scan" or self.compact

    @property
    def spread(self) -> bool:
        """It is not in one piece, in one process."""
        return self.shards * self.replicas > 1

    def definition(self) -> dict[str, Any]:
        """Return what is not the default, as it is stored with the index."""
        return {name: value for name, value in asdict(self).items() if value != getattr(_DEFAULT, name)}

    @classmethod
    def of(cls, definition: Mapping[str, Any] | None) -> IndexOptions:
        """Make them of what was stored."""
        names = {field.name for field in fields(cls)}
        for name in definition or {}:
            if name not in names:
                raise InvalidInputError(f"An index has no option {name!r}.{did_you_mean(name, names)}")
        return cls(**definition or {})


def _is_whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


_DEFAULT: Final = IndexOptions()
