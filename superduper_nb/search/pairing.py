"""Two towers that were trained together find each other only if both are of one run."""

from __future__ import annotations

from superduper_nb.components.store import Component, ComponentStore

__all__ = ["version_beside"]


def version_beside(store: ComponentStore, first: str, served: int, other: str) -> int | None:
    """Return which version of another tower encodes queries for vectors of this version of the first one.

    While vectors of a new version are computed, an index serves those of the version before. Until it changes over,
    queries are encoded by the other tower as it was then: by its version of the same run, or of none.

    Returns
    -------
    int or None
        None: the current one.
    """
    if served == store.get("model", first).version:
        return None
    if (made := store.find("model", first, version=served)) is None:
        return None
    for version in reversed(store.versions("model", other)):
        if _run(store.get("model", other, version=version)) == _run(made):
            return version
    return None


def _run(component: Component) -> str | None:
    return (component.origin or {}).get("run")
