"""One update of the weights, beside the same update written by hand in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from training_models import net

import superduper_nb as sd
from superduper_nb.errors import InvalidInputError
from superduper_nb.training import Side, Trainer
from superduper_nb.training.data import Batch
from superduper_nb.training.stepper import Stepper

Pair = tuple[torch.Tensor, torch.Tensor]


class Classify(Trainer):
    """Digits by their pixels."""

    def step(self, batch: Pair) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.sides[0].output(batch[0]), batch[1])


class Both(Trainer):
    """Two nets, whose logits are added up."""

    def step(self, batch: Pair) -> torch.Tensor:
        logits = self.sides[0].output(batch[0]) + self.sides[1].output(batch[0])
        return torch.nn.functional.cross_entropy(logits, batch[1])


@pytest.fixture(scope="module")
def batches() -> list[Pair]:
    """Return eight batches of 32 digits."""
    x, y = load_digits(return_X_y=True)
    images, labels = torch.tensor(x[:256], dtype=torch.float32) / 16, torch.tensor(y[:256])
    return list(zip(images.split(32), labels.split(32), strict=True))


def stepper(training: sd.Training, total: int = 8) -> Stepper:
    side = Side("net", "img", net(dropout=0.0), device=torch.device("cpu"))
    return Stepper(Classify(sides=[side]), training, total)


def trained(training: sd.Training, batches: list[Pair], each: int = 1) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Return the losses, and the weights after so many batches a step."""
    ours = stepper(training, len(batches) // each)
    losses = [
        ours.step([(Batch(batch, len(batch[1])), [len(batch[1])]) for batch in batches[at : at + each]])
        for at in range(0, len(batches), each)
    ]
    return losses, ours.trained["net"].state_dict()


def by_hand(
    batches: list[Pair],
    *,
    each: int = 1,
    clip: float | None = None,
    dtype: torch.dtype | None = None,
    optimizer: Callable[..., Any] = torch.optim.AdamW,
    rates: list[float] | None = None,
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train as PyTorch's own tutorials do."""
    model = net(dropout=0.0)
    updates = optimizer(model.parameters(), lr=1e-2)
    losses = []
    for n, at in enumerate(range(0, len(batches), each)):
        for group in updates.param_groups if rates else ():
            group["lr"] = (rates or [])[n]
        updates.zero_grad()
        total = 0.0
        for x, y in batches[at : at + each]:
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                loss = torch.nn.functional.cross_entropy(model(x), y)
            (loss / each).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach()) / each
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        updates.step()
        losses.append(total)
    return losses, model.state_dict()


def assert_alike(ours: tuple[list[float], Any], theirs: tuple[list[float], Any], tolerance: float = 1e-6) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=max(tolerance, 1e-6))
    assert not torch.equal(ours[1]["layers.0.weight"], net().layers[0].weight)
    assert all(torch.allclose(ours[1][name], theirs[1][name], atol=tolerance) for name in theirs[1])


def test_bf16_is_the_autocast_of_pytorch(batches: list[Pair]) -> None:
    ours = trained(sd.Training(lr=1e-2, precision="bf16"), batches)
    assert_alike(ours, by_hand(batches, dtype=torch.bfloat16))
    plain = by_hand(batches)
    assert ours[0] != plain[0]  # it was really computed with fewer bits
    assert ours[0] == pytest.approx(plain[0], rel=0.02)
    assert {value.dtype for value in ours[1].values()} == {torch.float32}  # the weights themselves keep theirs


def test_fp16_scales_the_loss_and_leaves_a_step_out_whose_gradient_overflows(batches: list[Pair]) -> None:
    scaled = trained(sd.Training(lr=1e-2, precision="fp16", clip_norm=0.5), batches)
    assert_alike(scaled, by_hand(batches, dtype=torch.float16, clip=0.5), tolerance=2e-3)
    ours = stepper(sd.Training(lr=1e-2, precision="fp16"))
    before = ours.weights()["net"]
    assert ours.state()["scaler"]["scale"] == 2.0**16
    ours.step([(Batch(batches[0], 32), [32])])
    assert not torch.equal(ours.weights()["net"]["layers.0.weight"], before["layers.0.weight"])
    ours._scaler.update(torch.finfo(torch.float32).max)  # as after many steps without an overflow
    before = ours.weights()["net"]
    assert ours.step([(Batch(batches[1], 32), [32])]) > 0
    assert all(torch.equal(value, before[name]) for name, value in ours.weights()["net"].items())
    assert ours.state()["scaler"]["scale"] == pytest.approx(torch.finfo(torch.float32).max / 2)


@pytest.mark.parametrize("clip", [None, 0.1])
def test_accumulated_gradients_are_those_of_the_larger_batch(batches: list[Pair], clip: float | None) -> None:
    ours = trained(sd.Training(lr=1e-2, grad_accumulation=4, clip_norm=clip, optimizer="SGD"), batches, each=4)
    assert_alike(ours, by_hand(batches, each=4, clip=clip, optimizer=torch.optim.SGD))
    whole = [(torch.cat([x for x, _ in part]), torch.cat([y for _, y in part])) for part in (batches[:4], batches[4:])]
    assert_alike(ours, by_hand(whole, clip=clip, optimizer=torch.optim.SGD))


def test_clipping_cuts_the_norm_of_the_whole_gradient(batches: list[Pair]) -> None:
    ours = trained(sd.Training(lr=1e-2, clip_norm=0.1, optimizer="SGD"), batches)
    assert_alike(ours, by_hand(batches, clip=0.1, optimizer=torch.optim.SGD))
    moved = torch.cat([(ours[1][name] - value).flatten() for name, value in net(dropout=0.0).state_dict().items()])
    assert float(moved.norm()) <= 8 * 1e-2 * 0.1 * 1.0001  # eight steps of that length at most


@pytest.mark.parametrize(
    ("scheduler", "warmup", "factors"),
    [
        ("constant", 0, [1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", 0, [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("constant", 3, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1]),
        ("linear", 4, [1 / 5, 2 / 5, 3 / 5, 4 / 5, 1, 3 / 4, 2 / 4, 1 / 4]),
        (lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.5), 0, [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5]),
    ],
)  # fmt: skip
def test_a_schedule_by_name_or_by_object_gives_these_rates(
    batches: list[Pair], scheduler: Any, warmup: int, factors: list[float]
) -> None:
    how = sd.Training(lr=1e-2, scheduler=scheduler, warmup_steps=warmup)
    assert_alike(trained(how, batches), by_hand(batches, rates=[1e-2 * factor for factor in factors]))


def test_the_cosine_schedule_is_that_of_pytorch(batches: list[Pair]) -> None:
    def annealed(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)

    theirs = trained(sd.Training(lr=1e-2, scheduler=annealed), batches)
    assert_alike(trained(sd.Training(lr=1e-2, scheduler="cosine"), batches), theirs)
    assert theirs[0] != trained(sd.Training(lr=1e-2), batches)[0]


def test_a_frozen_model_keeps_weights_and_statistics_and_the_other_is_trained(batches: list[Pair]) -> None:
    body = torch.nn.Sequential(torch.nn.Linear(64, 10), torch.nn.BatchNorm1d(10))
    cpu = torch.device("cpu")
    trainer = Both(sides=[Side("body", "img", body, device=cpu), Side("net", "img", net(dropout=0.0), device=cpu)])
    ours = Stepper(trainer, sd.Training(lr=1e-2, use_grads={"body": False}), 8)
    before = {name: value.clone() for name, value in body.state_dict().items()}
    losses = [ours.step([(Batch(batch, 32), [32])]) for batch in batches]
    assert all(torch.equal(value, before[name]) for name, value in body.state_dict().items())
    assert all(parameter.grad is None for parameter in body.parameters())
    assert losses[-1] < losses[0]
    assert list(ours.weights()) == ["net"]
    with pytest.raises(InvalidInputError, match="no parameter of 'body', 'net' takes a gradient"):
        Stepper(trainer, sd.Training(use_grads={"body": False, "net": False}), 8)
    with pytest.raises(InvalidInputError, match="Did you mean 'net'"):
        Stepper(trainer, sd.Training(use_grads={"nets": False}), 8)


def test_an_optimizer_by_name_or_by_object_is_pytorchs_own(batches: list[Pair]) -> None:
    by_name = trained(sd.Training(lr=1e-2, optimizer="sgd"), batches)
    assert_alike(by_name, by_hand(batches, optimizer=torch.optim.SGD))
    made = trained(sd.Training(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-2)), batches)
    assert_alike(made, by_name)
    decayed = trained(sd.Training(lr=1e-2, weight_decay=0.5), batches)
    assert_alike(decayed, by_hand(batches, optimizer=lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.5)))
    # weight_decay=None leaves the optimizer its own: AdamW's is 0.01, not 0.
    assert_alike(trained(sd.Training(lr=1e-2), batches), by_hand(batches))
    assert trained(sd.Training(lr=1e-2, weight_decay=0.0), batches)[0] != by_hand(batches)[0]
    with pytest.raises(InvalidInputError, match="Did you mean 'AdamW'"):
        stepper(sd.Training(optimizer="AdanW"))
