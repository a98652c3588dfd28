"""How databases and collections show what is registered, and how a collection passes on what its database does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from superduper_nb.client.registry import Registry

if TYPE_CHECKING:
    from superduper_nb.client.database import Database
    from superduper_nb.components.store import Kind

__all__ = ["Registered", "passed_on"]

P = ParamSpec("P")
R = TypeVar("R")


class Registered:
    """An attribute that is the `Registry` of one kind of component.

    Parameters
    ----------
    kind : str
        Which kind.
    doc : str
        What `help` says of the attribute.
    of_collection : bool, default False
        Its components belong to a collection; else to the whole database.
    """

    def __init__(self, kind: Kind, doc: str, *, of_collection: bool = False) -> None:
        self.kind, self.of_collection, self.__doc__ = kind, of_collection, doc

    def __get__(self, owner: Any, owners: type | None = None) -> Registry:
        """Return the registry; of the class, this itself, where `help` finds the text."""
        if owner is None:
            return self  # type: ignore[return-value]
        return Registry(owner._workspace, self.kind, owner.name if self.of_collection else "")


def passed_on(method: Callable[Concatenate[Database[Any], P], R]) -> Callable[Concatenate[Any, P], R]:
    """Return a collection's method that does what this one of its database does."""

    def call(collection: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return method(collection._ours, *args, **kwargs)

    functools.update_wrapper(call, method)
    return call
