"""What becomes of a part of a job whose worker was lost: it is tried again, cut up to find the document, or given up.

A worker may die of what others do in it, so a part is only suspected when it has lost one too many; then it runs alone.
"""

from __future__ import annotations

from typing import Final

from superduper_nb.cluster.dask import WorkerLostError
from superduper_nb.jobs.running import Part, RunningJob

__all__ = ["after_loss", "suspect"]

_PIECES: Final = 8
_TRUSTED_LOSSES: Final = 1
"""So many workers may be lost with a part before it is tried alone: somebody else may have ended them."""
_ATTEMPTS: Final = 3
"""So many workers does one document kill, alone, before it is given up."""
_WHOLE_ATTEMPTS: Final = 5
"""So many workers may be lost with work that is one piece and goes on where it was, before its job is given up."""
_LOST_IN_A_ROW: Final = 10
"""So many workers does a model kill, with nothing computed in between, before its job is given up."""


def suspect(job: RunningJob, part: Part) -> bool:
    """Say whether a part is to run alone, because workers were lost with it."""
    return not job.whole and part.attempts > _TRUSTED_LOSSES


def after_loss(job: RunningJob, part: Part, worker: str, batch_timeout: float) -> str | None:
    """Queue what was lost again, or give up its job; return why its one document is given up, where it is."""
    if job.whole:
        _try_again(job, part)
        return None
    job.lost.add(worker)
    if len(job.lost) > _LOST_IN_A_ROW:
        job.error = WorkerLostError(
            f"{len(job.lost)} workers in a row died with this job (the model ended them, a batch took longer "
            f"than {batch_timeout:g} s, or memory ran out)."
        )
        return None
    return _disentangle(job, part, batch_timeout) if part.stuck else _isolate(job, part)


def _isolate(job: RunningJob, part: Part) -> str | None:
    """Find the document that kills workers: cut up what was lost when it ran alone, until one is left."""
    part.attempts += 1
    if part.attempts <= _TRUSTED_LOSSES + 1:
        job.again.append(part)
    elif len(part.ids) > 1:
        # Each is suspected, and none has done anything yet: where a model leaks, workers die of what others left.
        part.attempts = _TRUSTED_LOSSES + 1
        job.again.extend(part.split(_PIECES))
    elif part.attempts <= _TRUSTED_LOSSES + _ATTEMPTS:
        job.again.append(part)
    else:
        return f"it killed its worker {_ATTEMPTS} times (a crash, or memory ran out)"
    return None


def _disentangle(job: RunningJob, part: Part, batch_timeout: float) -> str | None:
    """Find the document that a model hangs on: nobody else can be the reason, so it need not run alone."""
    part.stuck = False
    part.hangs += 1
    if len(part.ids) > 1:
        job.again.extend(part.split(_PIECES))
    elif part.hangs < _ATTEMPTS:
        job.again.append(part)
    else:
        return f"the model took longer than {batch_timeout:g} s for it, {_ATTEMPTS} times"
    return None


def _try_again(job: RunningJob, part: Part) -> None:
    part.attempts += 1
    if part.attempts < _WHOLE_ATTEMPTS:
        job.again.append(part)
    else:
        job.error = WorkerLostError(
            f"{part.attempts} workers died with it, each where the one before had stopped (memory ran out, or a "
            "model ended them)."
        )
