"""Jobs: what has to be computed, recorded in MongoDB first and executed at least once, with effect once."""

from superduper_nb.jobs.records import JobStore
from superduper_nb.jobs.values import FINAL_STATES, NewJob

__all__ = ["FINAL_STATES", "JobStore", "NewJob"]
