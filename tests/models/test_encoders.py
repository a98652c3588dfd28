"""The ready encoders answer what their network answers to each input alone, as they are and after they were stored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pymongo.database import Database
from tokenizers import Tokenizer, models, pre_tokenizers

from superduper_nb.components import ComponentStore
from superduper_nb.errors import InvalidInputError
from superduper_nb.models import ImageEncoder, Predictor, SentenceEncoder

WORDS = ["[PAD]", "[UNK]", "a", "warm", "red", "scarf", "for", "the", "winter"]
TEXTS = ["a warm red scarf for the winter", "scarf", "a a a a a a a a a", "the winter"]


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small encoder with weights of chance, as transformers does."""
    # Not at the top: each process of tests imports this module, and transformers takes seconds.
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("encoder")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(WORDS), **sizes)).save_pretrained(path)
    return path


@pytest.fixture
def folder(plain_folder: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may add to."""
    return shutil.copytree(plain_folder, tmp_path / "encoder")


def alone(encoder: SentenceEncoder, text: str, *, limit: int | None = None) -> torch.Tensor:
    """Pool the token vectors of one text, in no batch."""
    tokens = torch.tensor([WORDS.index(word) for word in text.split()][:limit])[None]
    with torch.inference_mode():
        vectors = encoder.transformer(tokens).last_hidden_state[0]
    vector = vectors.mean(0) if encoder.pooling == "mean" else vectors[0]
    return vector / vector.norm()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_sentence_encoder_answers_to_each_text_as_if_it_were_alone(folder: Path, pooling: Any) -> None:
    encoder = SentenceEncoder.from_folder(folder, pooling=pooling)
    for text, answer in zip(TEXTS, Predictor(encoder).predict_many(TEXTS), strict=True):
        assert torch.allclose(answer, alone(encoder, text), atol=1e-6), text


def test_what_sentence_transformers_noted_in_a_folder_is_done(folder: Path) -> None:
    layers = [{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "1_Pooling"}]
    (folder / "modules.json").write_text(json.dumps([*layers, {"type": "a.Normalize", "path": "2_Normalize"}]))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 3}))
    (folder / "1_Pooling").mkdir()
    noted = folder / "1_Pooling" / "config.json"
    for old_or_new in ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, {"pooling_mode": "cls"}):
        noted.write_text(json.dumps(old_or_new))
        encoder = SentenceEncoder.from_folder(folder)
        assert (encoder.pooling, encoder.normalize) == ("cls", True)
        assert torch.allclose(Predictor(encoder).predict(TEXTS[0]), alone(encoder, TEXTS[0], limit=3), atol=1e-6)
    noted.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(InvalidInputError, match="pooling='max'"):
        SentenceEncoder.from_folder(folder)
    assert SentenceEncoder.from_folder(folder, pooling="mean").pooling == "mean"


def test_a_folder_that_can_not_be_read_is_said(folder: Path, tmp_path: Path) -> None:
    (folder / "modules.json").write_text(json.dumps([{"type": "a.Transformer", "path": ""}]))
    assert SentenceEncoder.from_folder(folder).normalize is False
    (folder / "modules.json").write_text(json.dumps([{"type": "a.Dense", "path": ""}]))
    with pytest.raises(InvalidInputError, match="layer Dense"):
        SentenceEncoder.from_folder(folder)
    with pytest.raises(InvalidInputError, match="no folder with a model"):
        SentenceEncoder.from_folder(tmp_path / "nowhere")


def test_a_stored_encoder_answers_the_same_and_is_no_new_version_after_use(
    folder: Path, database: Database[dict[str, Any]], home: Path
) -> None:
    store = ComponentStore(database)
    encoder = SentenceEncoder.from_folder(folder)
    component, _ = store.put("model", "m", {}, obj=encoder)
    answers = Predictor(encoder).predict_many(TEXTS)
    loaded = Predictor(store.load(component)).predict_many(TEXTS)
    assert all(map(torch.equal, loaded, answers))
    for again in (encoder, SentenceEncoder.from_folder(folder)):
        _, new = store.put("model", "m", {}, obj=again)
        assert not new


# --- pictures ------------------------------------------------------------------------------------------------------


class Network(torch.nn.Module):
    """Maps of two channels at half the size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv2d(3, 2, 2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def noise(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_an_image_encoder_answers_what_its_network_answers() -> None:
    encoder = ImageEncoder(Network(), size=8, resize=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), normalize=True)
    pictures = [noise(8, 8, 3), noise(8, 8, 3)[::-1], noise(8, 8)]
    with torch.inference_mode():
        for picture, answer in zip(pictures, Predictor(encoder).predict_many(pictures), strict=True):
            pixels = torch.tensor(np.broadcast_to(picture.reshape(8, 8, -1), (8, 8, 3)).copy()).permute(2, 0, 1) / 255
            scaled = (pixels - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.2, 0.3, 0.4])[
                :, None, None
            ]
            vector = encoder.network(scaled[None])[0].mean((1, 2))
            assert torch.allclose(answer, vector / vector.norm(), atol=1e-6)


def test_a_picture_is_made_small_and_its_middle_is_cut_out() -> None:
    plain = ImageEncoder(torch.nn.Flatten(), size=8, resize=8, mean=(0, 0, 0), std=(1, 1, 1))
    wide = np.concatenate([np.full((16, 8, 3), 10), np.full((16, 16, 3), 20), np.full((16, 8, 3), 30)], 1).astype(
        np.uint8
    )
    for picture in (Image.fromarray(wide), Image.fromarray(wide.swapaxes(0, 1)), wide):
        answer = Predictor(plain).predict(picture) * 255
        assert answer.shape == (3 * 8 * 8,)
        assert abs(answer.mean() - 20) < 1
        assert set(answer.round().int().tolist()) <= set(range(17, 24))  # the sides are cut off, but for their blur
    assert ImageEncoder(Network()).preprocess(Image.new("L", (30, 900))).shape == (3, 224, 224)


@pytest.mark.parametrize("options", [{"size": 0}, {"size": 9, "resize": 8}])
def test_a_square_that_can_not_be_cut_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError, match="size="):
        ImageEncoder(Network(), **options)
