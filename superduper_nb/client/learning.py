"""Tasks that train: how they are queued, and how users see their runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from toolz import merge_with

from superduper_nb.client.folds import give_folds
from superduper_nb.client.jobs import Jobs
from superduper_nb.components import Component
from superduper_nb.components.store import Kind
from superduper_nb.errors import InvalidInputError, NotFoundError, did_you_mean
from superduper_nb.jobs import NewJob
from superduper_nb.jobs.training import imputing
from superduper_nb.jobs.values import ACTIVE_STATES
from superduper_nb.jobs.watchers import Watcher
from superduper_nb.training.building import loss_of, metric_of, models_of
from superduper_nb.training.options import Training
from superduper_nb.training.runs import PLACE, RunStore, named
from superduper_nb.training.task import task_name

if TYPE_CHECKING:
    import pandas as pd

    from superduper_nb.client.workspace import Workspace

__all__ = ["TASKS", "Task", "check_training", "check_validation_sets", "target_kind", "train", "trained_as"]


TASKS: Final[tuple[Kind, ...]] = ("imputation", "semantic_index", "learning_task")
"""What can be trained."""

_FOLDS: Final = ("train", "valid")


class Task(dict[str, Any]):
    """A registered task: its definition, as a mapping, and its runs.

    Parameters
    ----------
    workspace : Workspace
        Of its database.
    component : Component
        The imputation, semantic index or learning task.
    """

    def __init__(self, workspace: Workspace, component: Component) -> None:
        super().__init__({"id": component.id, **component.definition})
        self._workspace, self._component = workspace, component
        self._store = RunStore(workspace.store.database)

    @property
    def history(self) -> pd.DataFrame:
        """The curves of the newest run: a row for each step at which something was measured."""
        import pandas as pd

        runs = self._store.of(*self._name)
        points = pd.DataFrame(self._store.history(runs[-1]["_id"]) if runs else [], columns=None)
        return points.set_index("step") if len(points) else points

    def compare(self, name: str) -> pd.DataFrame:
        """Return one curve of every run: a row for each step, a column for each run, oldest first.

        Parameters
        ----------
        name : str
            Of a column of `history`, such as ``"valid.loss"``.

        Raises
        ------
        NotFoundError
            No run measured it.
        """
        import pandas as pd

        histories = {run["_id"]: self._store.history(run["_id"]) for run in self._store.of(*self._name)}
        curves = {
            run: pd.Series({point["step"]: point[name] for point in points if name in point}, dtype=float)
            for run, points in histories.items()
        }
        if not any(map(len, curves.values())):
            known = {key for points in histories.values() for point in points for key in point} - PLACE
            raise NotFoundError(f"No run of {self['id']!r} has {name!r}.{did_you_mean(name, sorted(known))}")
        return pd.DataFrame(curves).rename_axis("step")

    @property
    def runs(self) -> pd.DataFrame:
        """Its runs, a row each, oldest first: state, steps, best and last values, and what they were trained with."""
        import pandas as pd

        rows = [self._row(run) for run in self._store.of(*self._name)]
        return pd.DataFrame(rows).set_index("run") if rows else pd.DataFrame()

    def _row(self, run: dict[str, Any]) -> dict[str, Any]:
        try:
            state = self._workspace.jobs.get(run["_id"])["state"]
        except NotFoundError:  # ended jobs are deleted after a while, runs are not
            state = "succeeded" if "ended" in run else "failed"
        told = {name: run.get(name) for name in ("step", "total", "best_step", "best", "monitor", "stopped")}
        skipped = sum(each["count"] for each in run.get("skipped", ()))
        values = named(run.get("last", {}))
        return {"run": run["_id"], "state": state, **told, "skipped": skipped, **values, **_options(run["training"])}

    def train(self, *, training: Training | None = None) -> Jobs:
        """Train again, on the documents that are there now.

        Parameters
        ----------
        training : Training, optional
            How; default: as it was created. ``Training(warm_start=True)`` goes on from the newest version.
        """
        if "training" not in self._component.definition:
            raise InvalidInputError(f"The {self._component.kind} {self['id']!r} was created without loss=.")
        task = self._component
        if training is not None:
            definition = {**task.definition, "training": training.definition()}
            code = training.code() or None
            task, _ = self._workspace.store.put(task.kind, task.id, definition, collection=task.collection, obj=code)
        return train(self._workspace, task, again=True)

    @property
    def _name(self) -> tuple[str, str, str]:
        return self._component.kind, self._component.collection, self._component.id


def _options(training: Mapping[str, Any]) -> dict[str, Any]:
    default = Training().definition()
    return {f"training.{name}": value for name, value in training.items() if value != default[name]}


def check_training(
    workspace: Workspace, kind: str, *, loss: str | None, metrics: Sequence[str], training: Any
) -> Training:
    """Check what is common to all tasks; return the training."""
    if training is not None and not isinstance(training, Training):
        raise InvalidInputError(f"training={training!r:.80}: give sd.Training(...).")
    if isinstance(metrics, str):
        raise InvalidInputError(f"metrics= is a list of names, such as [{metrics!r}].")
    loss_of(workspace.loader, kind, loss)
    for metric in metrics:
        metric_of(workspace.loader, kind, metric)
    return training or Training()


def check_validation_sets(
    workspace: Workspace, collection: str, names: Sequence[str], features: Mapping[str, str] | None = None
) -> list[str]:
    """Check the sets that a task is to be measured on; return their names."""
    if isinstance(names, str):
        raise InvalidInputError(f"validation_sets= is a list of names, such as [{names!r}].")
    if names and features:
        raise InvalidInputError("features= and validation_sets=: a frozen copy has no current outputs. Give one.")
    for name in names:
        if name in _FOLDS:
            raise InvalidInputError(f"{name!r} is a fold: a validation set of that name can't be told from it.")
        workspace.store.get("validation_set", name, collection=collection)
    return list(names)


def trained_as(loss: str | None, metrics: Sequence[str], sets: Sequence[str], training: Training) -> dict[str, Any]:
    """Return the part of a definition that says how something is trained."""
    return {"loss": loss, "metrics": list(metrics), "validation_sets": list(sets), "training": training.definition()}


def target_kind(workspace: Workspace, target: str | None) -> str | None:
    """Say what a target is: a registered function, a model, or None."""
    if target is None:
        return None
    kinds: tuple[Kind, ...] = ("function", "model")
    for kind in kinds:
        if workspace.store.find(kind, target):
            return kind
    known = [*workspace.store.ids("function"), *workspace.store.ids("model")]
    raise NotFoundError(f"No function and no model is called {target!r}.{did_you_mean(target, known)}")


def train(workspace: Workspace, task: Component, *, again: bool = False) -> Jobs:
    """Queue the training of a task, and after it what depends on its models; nothing where that was done already.

    What is under way is not queued again, and waited for like what is.
    """
    runs = RunStore(workspace.store.database)
    code = workspace.loader.object(task) if task.artifact else {}
    training = Training.from_definition(task.definition["training"], code)
    starts = {model: _start(workspace, task, model, training) for model in models_of(task.kind, task.definition)}
    after = _affected(workspace, task, [model for model in starts if training.use_grads.get(model, True)])
    if not again and (last := _settled(workspace, runs, task, starts)):
        active = last["state"] in ACTIVE_STATES
        return Jobs(workspace, {last["name"]: last["_id"], **workspace.underway(after)} if active else {})
    documents = workspace.store.database[task.collection]
    give_folds(documents, task.definition["filter"], workspace.client._valid_fraction)
    count = documents.count_documents({"$and": [{"_fold": "train"}, task.definition["filter"]]})
    needs = merge_with(max, *(model.definition.get("resources", {}) for model in starts.values()))
    work = {"ids": ["run"], "resources": needs}
    job = NewJob("training", f"train {task.id}", task.collection, task.id, work, training.steps(count))
    runs.plan(job.id, task, {model: component.version for model, component in starts.items()})
    workspace.jobs.create([job])
    return workspace.started({job.name: job.id, **workspace.backfill(after, [job.id])})


def _start(workspace: Workspace, task: Component, model: str, training: Training) -> Component:
    """Return the version to start from: the newest that this task did not make itself."""
    current = workspace.store.get("model", model)
    if training.warm_start:
        return current
    for version in reversed(workspace.store.versions("model", model)):
        found = workspace.store.get("model", model, version=version)
        if found.origin is None or found.origin["by"] != task_name(task):
            return found
    return current


def _settled(
    workspace: Workspace, runs: RunStore, task: Component, starts: Mapping[str, Component]
) -> dict[str, Any] | None:
    """Return the job of the last run, where that is this one, and did not fail."""
    last = runs.last(task.kind, task.collection, task.id)
    if last is None or last["version"] != task.version or last["starts"].keys() != starts.keys():
        return None
    for model, version in last["starts"].items():
        before = workspace.store.find("model", model, version=version)
        if before is None or before.hash != starts[model].hash:
            return None
    try:
        job = workspace.jobs.get(last["_id"])
    except NotFoundError:  # ended jobs are deleted after a while, runs are not
        job = {"_id": last["_id"], "state": "succeeded" if "ended" in last else "failed"}
    return job if job["state"] in (*ACTIVE_STATES, "succeeded") else None


def _affected(workspace: Workspace, task: Component, models: Sequence[str]) -> list[Watcher]:
    """List the watchers that new versions of the models put out of date, and the one that an imputation will make."""
    found = {watcher.id + watcher.collection: watcher for model in models for watcher in workspace.dependents(model)}
    if task.kind == "imputation":
        watcher = imputing(task.collection, task.definition)
        found.setdefault(watcher.id + watcher.collection, watcher)
    return list(found.values())
