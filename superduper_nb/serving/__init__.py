"""The model server: registered models in a process of their own, requests joined into batches.

`ModelServer` (in the notebook server) and `InProcessModels` (everything in one process) have the same methods.
"""

from superduper_nb.serving.inprocess import InProcessModels
from superduper_nb.serving.server import ModelServer
from superduper_nb.serving.stream import Stream
from superduper_nb.serving.values import (
    Body,
    Current,
    Errors,
    Form,
    Load,
    Prediction,
    Predicts,
    Slice,
    Types,
    UnreadBody,
)

__all__ = [
    "Body",
    "Current",
    "Errors",
    "Form",
    "InProcessModels",
    "Load",
    "ModelServer",
    "Prediction",
    "Predicts",
    "Slice",
    "Stream",
    "Types",
    "UnreadBody",
]
