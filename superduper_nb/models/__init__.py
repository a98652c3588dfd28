"""Load a registered model, and apply it to one input or to many."""

from superduper_nb.models.apply import ItemError, Predictor
from superduper_nb.models.loading import Loader

__all__ = ["ItemError", "Loader", "Predictor"]
