"""Train models from documents: what is learnt, the loop, its checkpoints, and the runs that it leaves."""

from superduper_nb.training.fitting import Fitter, Fitting
from superduper_nb.training.options import Training
from superduper_nb.training.runs import RunStore
from superduper_nb.training.trainer import Side, Trainer

__all__ = ["Fitter", "Fitting", "RunStore", "Side", "Trainer", "Training"]
