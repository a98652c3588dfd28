"""``SkorchTrainer``: a net of skorch, fitted by skorch's own loop from documents."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from superduper_nb.errors import InvalidInputError
from superduper_nb.training.fitting import Fitting, SupervisedFitter
from superduper_nb.training.seeds import seed_all

try:
    from skorch import NeuralNet, NeuralNetClassifier
    from skorch.callbacks import Callback
    from skorch.helper import predefined_split
except ImportError:
    raise InvalidInputError("SkorchTrainer needs skorch: pip install 'superduper-nb[training]'.") from None

from torch import nn
from torch.utils.data import Dataset

__all__ = ["SkorchTrainer"]

_OURS: Final = ("train_split", "iterator_train", "iterator_valid", "max_epochs")


class SkorchTrainer(SupervisedFitter):
    """Fits a skorch net as skorch does: its criterion, its optimizer, its callbacks.

    ``epochs``, ``max_steps`` and ``batch_size`` of `Training` count, not the net's own; its ``valid_loss`` is
    ``"valid.loss"`` here, over the fold of that name. Checkpoints are made at the ends of epochs.

    Examples
    --------
    >>> docs.create_model("net", NeuralNetClassifier(Net, lr=0.1))                                 # doctest: +SKIP
    >>> docs.create_trainer("skorch", SkorchTrainer)                                               # doctest: +SKIP
    >>> docs.create_learning_task("digit", "skorch", ["net"], ["img"], target="label")             # doctest: +SKIP
    """

    def fit(self, fitting: Fitting) -> None:
        """Train."""
        net: Any = self.sides[0].module
        if not isinstance(net, NeuralNet):
            raise InvalidInputError(f"SkorchTrainer trains a net of skorch, not a {type(net).__name__}.")
        if others := [name for name in fitting.validation_sets if name != "valid"]:
            raise InvalidInputError(f"validation_sets={others}: skorch judges by one set, the fold 'valid'.")
        self._go_on(fitting.state or copy.deepcopy(net), fitting)
        if "valid" not in fitting.validation_sets:
            fitting.judge({})

    def _go_on(self, net: Any, fitting: Fitting) -> None:
        self.sides[0].module = net
        own = {name: getattr(net, name) for name in _OURS}
        if not net.initialized_:
            seed_all(fitting.training.seed, "start")
            net.initialize()
        if isinstance(net, NeuralNetClassifier) and net.classes is None:
            net.classes_inferred_ = self._numbers(fitting)
        watch = _Watch(fitting)
        net.callbacks_.append(("superduper", watch.initialize()))
        valid = _Batches(self.collate, lambda: fitting.held_out("valid"))
        net.train_split = predefined_split(valid) if "valid" in fitting.validation_sets else None
        net.iterator_train = net.iterator_valid = _as_it_is
        net.max_epochs = fitting.total  # more than there will be: the watch ends it
        watch.bare = lambda: _bare(net, own)
        try:
            net.partial_fit(_Batches(self.collate, lambda: _left(fitting)))
        finally:
            self.sides[0].module = _bare(net, own)
        if not watch.ended:
            raise KeyboardInterrupt

    def _numbers(self, fitting: Fitting) -> Any:
        """Return the numbers of the classes: skorch finds them itself where it gets all of the data at once."""
        if self._labels is not None:
            return np.arange(len(self._labels.classes))
        return np.unique([target for _, target in fitting.in_order()])

    def snapshot(self) -> Any:
        """Return a copy of the net's modules' weights."""
        fitted = {name: value for name, value in vars(self.sides[0].module).items() if name.endswith("_")}
        modules = {name: value for name, value in fitted.items() if isinstance(value, nn.Module)}
        return {name: copy.deepcopy(module.state_dict()) for name, module in modules.items()}

    def restore(self, snapshot: Any) -> None:
        """Put them back."""
        for name, state in snapshot.items():
            getattr(self.sides[0].module, name).load_state_dict(state)

    def finished(self, model: str, bundle: dict[str, Any]) -> dict[str, Any]:
        """Return the fitted net; with ``classes=`` it answers them."""
        return {**super().finished(model, bundle), "object": self.sides[0].module}


class _Batches(Dataset[Any]):
    """Batches, drawn anew each time that they are looped over; a dataset, so that skorch takes them as one."""

    def __init__(self, collate: Callable[[Sequence[Any]], Any], draw: Callable[[], Iterator[list[Any]]]) -> None:
        self._collate, self._draw = collate, draw

    def __iter__(self) -> Iterator[Any]:
        return map(self._collate, self._draw())


def _as_it_is(dataset: _Batches, **_: Any) -> _Batches:
    return dataset


def _left(fitting: Fitting) -> Iterator[list[Any]]:
    """Yield the batches of the epoch, until the steps are done: then skorch ends the epoch, and validates."""
    seed_all(fitting.training.seed, fitting.epoch)  # another attempt draws the same
    for batch in fitting.batches(fitting.epoch):
        if fitting.over:
            return
        yield batch


class _Watch(Callback):
    """Passes on what happens, and ends the training in skorch's own way, by an interrupt that it catches."""

    def __init__(self, fitting: Fitting) -> None:
        self._fitting, self.ended = fitting, False
        self.bare: Callable[[], Any] = lambda: None

    def on_batch_begin(self, net: Any, training: bool = False, **_: Any) -> None:
        self._fitting.begin()

    def on_batch_end(self, net: Any, training: bool = False, loss: Any = None, **_: Any) -> None:
        if training:
            self._fitting.tell(loss=float(loss.detach()))
        else:
            self._fitting.rest()

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        fitting, row = self._fitting, net.history[-1]
        values = {f"valid.{name[6:]}": float(row[name]) for name in row if _is_result(name, row[name])}
        over = fitting.judge(values) if values else fitting.over
        fitting.epoch += 1
        if fitting.due():
            fitting.save(self.bare())
        if over:
            self.ended = True
            raise KeyboardInterrupt


def _is_result(name: str, value: Any) -> bool:
    return name.startswith("valid_") and not name.endswith(("_best", "_count", "_size")) and isinstance(value, float)


def _bare(net: Any, own: dict[str, Any]) -> Any:
    """Return a copy of a net without what this training put into it: it is stored, and goes on elsewhere."""
    bare = copy.copy(net)
    bare.callbacks_ = [each for each in net.callbacks_ if not isinstance(each[1], _Watch)]
    for name, value in own.items():
        setattr(bare, name, value)
    return bare
