"""Jobs: what has to be computed, recorded in MongoDB first and executed at least once, with effect once."""

from superduper_nb.jobs.records import FINAL_STATES, JobStore, NewJob

__all__ = ["FINAL_STATES", "JobStore", "NewJob"]
