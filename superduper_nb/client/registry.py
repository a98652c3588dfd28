"""One mapping for each kind of component: ``docs.models["m"]``, ``list(docs.models)``, ``docs.models.delete("m")``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from superduper_nb.client.learning import TASKS, Task
from superduper_nb.client.validating import ValidationSet
from superduper_nb.components.store import Component, Kind
from superduper_nb.components.validation import ValidationStore
from superduper_nb.errors import ConflictError
from superduper_nb.jobs.neighbours import like_path, note_path
from superduper_nb.jobs.watchers import Watcher
from superduper_nb.training import RunStore

if TYPE_CHECKING:
    from superduper_nb.client.jobs import Jobs
    from superduper_nb.client.workspace import Workspace

__all__ = ["Registry"]


class Registry(Mapping[str, Any]):
    """The components of one kind.

    Parameters
    ----------
    workspace : Workspace
        Of their database.
    kind : str
        Which kind.
    collection : str
        The collection they belong to; empty for those of the whole database.
    """

    def __init__(self, workspace: Workspace, kind: Kind, collection: str = "") -> None:
        self._workspace, self._kind, self._collection = workspace, kind, collection

    def __getitem__(self, id: str) -> Any:
        """Return the registered object; the definition of what has none."""
        component = self._get(id)
        if self._kind in TASKS:
            return Task(self._workspace, component)
        if self._kind == "validation_set":
            return ValidationSet(self._workspace, component)
        if component.artifact is None:
            return {"id": component.id, **component.definition}
        loaded = self._workspace.loader.object(component)
        return loaded["object"] if self._kind == "model" else loaded

    def __iter__(self) -> Iterator[str]:
        return iter(self._workspace.store.ids(self._kind, collection=self._collection))

    def __len__(self) -> int:
        return len(self._workspace.store.ids(self._kind, collection=self._collection))

    def __contains__(self, id: object) -> bool:
        return (
            isinstance(id, str) and self._workspace.store.find(self._kind, id, collection=self._collection) is not None
        )

    def versions(self, id: str) -> list[int]:
        """List the versions of a component, oldest first."""
        self._get(id)
        return self._workspace.store.versions(self._kind, id, collection=self._collection)

    def describe(self, id: str) -> dict[str, Any]:
        """Return what is known of a component, without loading its object."""
        component = self._get(id)
        artifact = component.artifact
        size = {} if artifact is None else {"bytes": artifact["size"], "python": artifact["python"]}
        return {
            "id": component.id,
            "kind": component.kind,
            "version": component.version,
            "created": component.created,
            **component.definition,
            **(component.notes or {}),
            **size,
            "used_by": self._users(id),
        }

    def delete(self, id: str, *, force: bool = False) -> None:
        """Remove a component, with all versions.

        Parameters
        ----------
        id : str
            Which one.
        force : bool, default False
            Also when something uses it.

        Raises
        ------
        ConflictError
            Something uses it; the message names what.
        NotFoundError
            There is none.
        """
        component = self._get(id)
        users = self._users(id)
        if users and not force:
            raise ConflictError(
                f"The {self._kind} {id!r} is used by {', '.join(users)}. Delete those first, or pass force=True."
            )
        self._workspace.store.delete(self._kind, id, collection=self._collection)
        if self._kind in TASKS:
            RunStore(self._workspace.store.database).forget(self._kind, self._collection, id)
        if component.kind == "watcher":
            watcher = Watcher.from_component(component)
            self._unset(watcher.output_path, watcher.token_path)
        elif component.kind == "neighbourhood":
            self._unset(like_path(id), note_path(id))
        elif component.kind == "validation_set":
            ValidationStore(self._workspace.store.database).forget(self._collection, id)
        self._workspace.changed()

    def _unset(self, path: str, note: str) -> None:
        """Take out of all documents what was kept in them."""
        documents = self._workspace.store.database[self._collection]
        documents.update_many({note: {"$exists": True}}, {"$unset": {path: "", note: ""}})

    def trust(self, id: str, *, version: int | None = None) -> dict[str, Any]:
        """Vouch for a component that another installation made: from now on its code is loaded and run here.

        Parameters
        ----------
        version : int, optional
            Of it; default: the newest.

        Returns
        -------
        dict
            What it is, with the ``version`` that is trusted.
        """
        store = self._workspace.store
        found = store.get(self._kind, id, collection=self._collection, version=version)
        signed = store.trust(found).artifact or {}
        self._workspace.changed()
        return {"id": id, "version": found.version, "bytes": signed.get("size", 0), "python": signed.get("python")}

    def rollback(self, id: str, version: int) -> Jobs:
        """Make the content of an older version the current one again, as a new version.

        Returns
        -------
        Jobs
            Those that recompute what depends on it.

        Raises
        ------
        NotFoundError
            No such component, or version.
        """
        workspace, store = self._workspace, self._workspace.store
        older = store.get(self._kind, id, collection=self._collection, version=version)
        obj = None if older.artifact is None else workspace.loader.object(older)
        origin = {"base": older.base, "by": None, "run": (older.origin or {}).get("run")}
        new, made = store.put(
            self._kind, id, older.definition, collection=self._collection, obj=obj, origin=origin, notes=older.notes
        )
        workspace.changed()
        if made and new.kind == "neighbourhood":
            return workspace.started(workspace.revise(self._collection, [id]))
        return workspace.started(workspace.backfill(self._affected(new)) if made else {})

    def _affected(self, component: Component) -> list[Watcher]:
        """List the watchers whose outputs a new version puts out of date."""
        if component.kind == "watcher":
            return [Watcher.from_component(component)]
        return self._workspace.dependents(component) if component.kind == "model" else []

    def _get(self, id: str) -> Component:
        return self._workspace.store.get(self._kind, id, collection=self._collection)

    def _users(self, id: str) -> list[str]:
        """List what names this component, as ``kind name``."""
        return [
            f"{other.kind} {other.id}" + (f" of {other.collection}" if other.collection else "")
            for kind, uses in _USES.get(self._kind, ())
            for other in self._workspace.store.current(kind, collection=self._collection or None)
            if id in uses(other)
        ]

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    def __repr__(self) -> str:
        names = ", ".join(map(repr, self))
        return f"<{_plural(self._kind)}: {names or 'none'}>"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th scope=row>{escape(id)}</th><td>{self._get(id).version}</td></tr>" for id in self)
        title = _plural(self._kind).capitalize()
        head = f"<tr><th scope=col>{title}</th><th scope=col>Version</th></tr>"
        return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"


def _plural(kind: str) -> str:
    return kind.replace("_", " ") + ("es" if kind.endswith(("s", "x")) else "s")


def _watcher_models(component: Component) -> set[str]:
    return {component.definition["model"], *component.definition["features"].values()}


def _index_watchers(component: Component) -> set[str]:
    models, keys = component.definition["models"], component.definition["keys"]
    return {f"{model}/{key}" for model, key in zip(models, keys, strict=True)}


def _tasks(*names: str) -> list[tuple[str, Any]]:
    """Return where tasks name a component: in one of these fields, alone or in a list."""

    def uses(component: Component) -> set[Any]:
        found = [component.definition.get(name) for name in names]
        return {each for value in found for each in (value if isinstance(value, list) else [value])}

    return [(kind, uses) for kind in TASKS]


_USES: dict[str, Any] = {
    "model": [("watcher", _watcher_models), *_tasks("models", "model", "target")],
    "type": [("model", lambda c: {c.definition["type"]})],
    "measure": _tasks("measure"),
    "loss": _tasks("loss"),
    "metric": _tasks("metrics"),
    "splitter": [*_tasks("splitter"), ("validation_set", lambda c: {c.definition["splitter"]})],
    "function": _tasks("target"),
    "trainer": _tasks("trainer"),
    "validation_set": _tasks("validation_sets"),
    "semantic_index": [("neighbourhood", lambda c: {c.definition["semantic_index"]})],
    "watcher": [("semantic_index", _index_watchers), ("watcher", lambda c: Watcher.from_component(c).upstream)],
}
"""For each kind, the kinds that may name one of it, and how."""
