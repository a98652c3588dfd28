"""Names that users can't give, since something is called so without being registered."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["builtin"]


def builtin(kind: str) -> Collection[str]:
    """Return the names of a kind that are always what is built in.

    (Losses and metrics are none of them: what a user registers goes before a ready one of the same name.)
    """
    if kind == "type":
        from superduper_nb.documents.types import builtin_types

        return builtin_types().keys()
    if kind == "measure":
        from superduper_nb.search.measures import BUILTIN

        return BUILTIN
    return ()
