"""The effect of a ``training`` job: one piece of work that lasts, stops when told to, and goes on where it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from superduper_nb.jobs.backfill import backfill, dependents
from superduper_nb.jobs.outputs import Control, Outcome
from superduper_nb.jobs.records import JobStore
from superduper_nb.jobs.watchers import Watcher
from superduper_nb.jobs.whole import WholeWork

__all__ = ["TrainingWork"]


class TrainingWork(WholeWork):
    """Trains the models of one task."""

    called = "training"

    def run(self, ids: Sequence[Any], control: Control | None = None) -> Outcome:
        """Train; store the best as new versions of the models."""
        from superduper_nb.training.results import INTERRUPTED
        from superduper_nb.training.task import Run

        control = control or Control()
        run = Run(self._database, self._loader, self._job["_id"])
        jobs = JobStore(self._database)
        others = self._others(run.training.processes, jobs.get(self._job["_id"]), control)
        trained = run.train(control, lambda text, curves: jobs.note(self._job["_id"], text, curves), others)
        state = jobs.get(self._job["_id"])["state"]
        if control.stopped() and state != "cancelled":
            return Outcome(trained.result.step)  # another has taken over, and stores what is to be stored
        trained = run.store(trained)
        interrupted = trained.result.stopped == INTERRUPTED
        self._follow(run, list(trained.versions), cancelled=interrupted or state == "cancelled")
        if interrupted:
            raise KeyboardInterrupt
        result, skipped = trained.result, trained.skipped
        failures = list(skipped.first)
        if result.stopped and result.stopped.startswith("the loss was"):
            failures.insert(0, {"_id": None, "error": f"Stopped: {result.stopped}; step {result.best_step} is kept."})
        return Outcome(result.step, tuple(failures), more=len(skipped) - len(skipped.first))

    def _others(self, processes: int, job: dict[str, Any], control: Control) -> Any:
        """Return the processes that train with this one, where there is a Dask cluster to have them."""
        if processes == 1:
            return None
        from superduper_nb.jobs.ranks import DaskRanks, in_worker

        if not in_worker():
            return None
        resources = job["work"].get("resources", {})
        return DaskRanks(self._database.name, job["_id"], processes, resources, control.stopped)

    def _follow(self, run: Any, models: list[str], *, cancelled: bool) -> None:
        """Register the watcher of an imputation; where the job's own children will not run, record others."""
        task = run.task
        if task.kind == "imputation":
            watcher = imputing(task.collection, task.definition)
            self._loader.store.put("watcher", watcher.id, watcher.definition(), collection=task.collection)
        if cancelled:
            concerned = [watcher for model in models for watcher in dependents(self._loader.store, model)]
            once = {(watcher.collection, watcher.id): watcher for watcher in concerned}
            backfill(JobStore(self._database), list(once.values()))


def imputing(collection: str, definition: dict[str, Any]) -> Watcher:
    """Return the watcher that fills in what an imputation has learnt."""
    features = dict(definition["features"])
    return Watcher(collection, definition["model"], definition["model_key"], definition["filter"], features)
