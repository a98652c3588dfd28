"""Apply a registered model to one input or to many."""

from superduper_nb.models.apply import ItemError, Predictor

__all__ = ["ItemError", "Predictor"]
