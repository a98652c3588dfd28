"""Models as the users of Lightning and skorch write them."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as lightning
import torch
from skorch import NeuralNetClassifier
from training_models import Net


class LitDigits(lightning.LightningModule):
    """As Lightning's users write one."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = Net(dropout=dropout)

    def preprocess(self, image: Any) -> torch.Tensor:
        return self.net.preprocess(image)

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, number: int) -> Any:
        loss = torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, number: int, dataloader_idx: int = 0) -> None:
        logits = self(batch[0])
        self.log("val_loss", torch.nn.functional.cross_entropy(logits, batch[1]), batch_size=len(batch[1]))
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean(), batch_size=len(batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Breaks(LitDigits):
    def training_step(self, batch: Any, number: int) -> Any:
        return super().training_step(batch, number) * (float("nan") if self.global_step >= self.steps else 1.0)


def skorch_net(**options: Any) -> NeuralNetClassifier:
    torch.manual_seed(0)
    module = Net(dropout=options.pop("dropout", 0.0))
    how = {"optimizer": torch.optim.AdamW, "lr": 1e-2, "verbose": 0, **options}
    return NeuralNetClassifier(module, criterion=torch.nn.CrossEntropyLoss, **how)
