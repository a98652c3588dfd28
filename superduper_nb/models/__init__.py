"""Load a registered model, apply it to one input or to many; ready encoders to register."""

from typing import TYPE_CHECKING, Any

from superduper_nb.models.apply import ItemError, Predictor
from superduper_nb.models.loading import Loader

if TYPE_CHECKING:
    from superduper_nb.models.encoders import ImageEncoder, SentenceEncoder

__all__ = ["ImageEncoder", "ItemError", "Loader", "Predictor", "SentenceEncoder"]


def __getattr__(name: str) -> Any:
    if name in ("ImageEncoder", "SentenceEncoder"):  # modules of torch, which is imported where one is applied
        from superduper_nb.models import encoders

        return getattr(encoders, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
