"""What a training may be told, and what is refused in a line."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import superduper_nb as sd
from superduper_nb.errors import InvalidInputError


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 2.5}, "batch_size=2.5: it must be a whole number"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"lr": -1}, "at least 0"),
        ({"precision": "bf61"}, "Did you mean 'bf16'"),
        ({"scheduler": "cosin"}, "Did you mean 'cosine'"),
        ({"optimizer": 3}, "optimizer=3"),
        ({"use_grads": True}, "use_grads=True"),
        ({"class_weights": "even"}, "'balanced' or"),
        ({"seed": True}, "seed=True"),
        ({"mode": "up"}, "mode='up'"),
    ],
)
def test_wrong_values_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError) as found:
        sd.Training(**options)
    assert said in str(found.value)
    assert "\n" not in str(found.value)


def test_it_is_stored_and_read_back() -> None:
    how = sd.Training(epochs=3, class_weights={"a": 2.0}, optimizer=torch.optim.SGD, use_grads={"m": False})
    assert sd.Training.from_definition(how.definition(), how.code()) == how
    assert how.definition()["optimizer"] == "<code>"
    assert (how.steps(65), sd.Training(max_steps=5).steps(6400), sd.Training().steps(64)) == (6, 5, 10)
    assert not sd.Training().rising
    assert sd.Training(monitor="valid.accuracy").rising
