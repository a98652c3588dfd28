"""What is inside documents: types, content, paths, and the codec between objects and what MongoDB stores."""

from superduper_nb.documents.codec import Codec, EncodeError
from superduper_nb.documents.content import Failed, Pending
from superduper_nb.documents.types import (
    Array,
    Audio,
    AudioClip,
    Bytes,
    Image,
    Pickle,
    Tensor,
    Type,
    Vector,
    builtin_types,
)

__all__ = [
    "Array",
    "Audio",
    "AudioClip",
    "Bytes",
    "Codec",
    "EncodeError",
    "Failed",
    "Image",
    "Pending",
    "Pickle",
    "Tensor",
    "Type",
    "Vector",
    "builtin_types",
]
