"""Models for the tests, loaded by name in the serving process: ``load`` is a pickle by reference."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from superduper_nb.errors import NotFoundError, TrustError
from superduper_nb.models import ItemError, Predictor


class Model:
    """Applies a function to each input; a failed one is an `ItemError`."""

    def __init__(self, function: Callable[[Any], Any], batch_size: Any = 32) -> None:
        self.function, self.batch_size = function, batch_size
        self.compiled = False

    def predict_many(self, xs: Sequence[Any]) -> list[Any]:
        return [self._one(x) for x in xs]

    def _one(self, x: Any) -> Any:
        try:
            return self.function(x)
        except Exception as error:
            return ItemError.of(error)


class Batches(Model):
    """Answers with the size of the batch that an input was in."""

    def predict_many(self, xs: Sequence[Any]) -> list[Any]:
        time.sleep(0.02)
        return [len(xs)] * len(xs)


class Raises(Model):
    """Raises instead of answering for each input."""

    def predict_many(self, xs: Sequence[Any]) -> list[Any]:
        if "bad" in xs:
            raise SystemExit("bad")
        return list(xs)[: 1 if "short" in xs else None]


def die(x: Any) -> Any:
    if x == "exit":
        os._exit(3)
    if x == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def fork(x: Any) -> Any:
    os.fork()
    return os.getpid()


def start_a_process(seconds: float) -> int:
    import subprocess

    return subprocess.Popen(["sleep", str(seconds)]).pid


def wait_for(path: str) -> str:
    """Answer once the file is there; say by a file beside it that the wait has begun."""
    Path(f"{path}.begun").touch()
    while not Path(path).exists():
        time.sleep(0.005)
    return path


def hold_the_interpreter(path: str) -> None:
    """Run native code that never lets go of the interpreter."""
    import re

    Path(path).touch()
    re.match(r"(a+)+$", "a" * 60 + "!")


def linear() -> Predictor:
    import torch

    torch.manual_seed(0)
    return Predictor(torch.nn.Linear(3, 2), preprocess=lambda x: torch.tensor(x, dtype=torch.float32))


def environment(x: Any) -> dict[str, Any]:
    import sys

    import torch

    print("a model may print", flush=True)
    return {"pid": os.getpid(), "threads": torch.get_num_threads(), "stdin": sys.stdin.read()}


def work(seconds: float) -> int:
    """Take a while; say where."""
    time.sleep(seconds)
    return os.getpid()


def tick(folder: str) -> Iterator[int]:
    """Yield a number every moment, until closed; say so by a file."""
    try:
        for i in range(1_000_000):
            yield i
            time.sleep(0.03)
    finally:
        Path(folder, "closed").touch()


def letters(text: str) -> Iterator[str]:
    for letter in text:
        if letter == "!":
            raise ValueError("no letter")
        if letter == "#":
            os._exit(3)
        yield letter


MODELS: dict[str, Callable[[], Any]] = {
    "double": lambda: Model(lambda x: x * 2),
    "batches": lambda: Batches(lambda x: x),
    "small": lambda: Batches(lambda x: x, batch_size=4),
    "auto": lambda: Model(lambda x: x, batch_size="auto"),
    "inverse": lambda: Model(lambda x: 1 / x),
    "raises": lambda: Raises(lambda x: x),
    "die": lambda: Model(die),
    "fork": lambda: Model(fork),
    "start": lambda: Model(start_a_process),
    "sleep": lambda: Model(time.sleep),
    "wait": lambda: Model(wait_for),
    "spin": lambda: Model(hold_the_interpreter),
    "environment": lambda: Model(environment),
    "odd": lambda: Model(lambda x: threading.Lock()),
    "linear": linear,
    "work": lambda: Model(work),
    "tick": lambda: Predictor(tick),
    "letters": lambda: Predictor(letters),
    "real": lambda: Predictor(lambda x: x + 1, preprocess=float, postprocess=str),
}


def load(database: str, model: str, version: int | None) -> tuple[Any, int]:
    assert version is not None
    if model == "untrusted":
        raise TrustError("not signed")
    if model == "broken":
        raise ValueError("weights missing")
    if model.startswith("big"):
        ballast = b"x" * (64 << 20)
        return Model(lambda x: len(ballast)), version
    if database != "shop":  # a folder that holds the number of the current version
        with Path(database, "loads").open("a") as loads:
            loads.write(f"{os.getpid()} {model} {version}\n")
        made = Model(lambda x: (time.sleep(0.005 * (model == "slow")), (version, x))[1])
        made.compiled = model == "compiled"
        if made.compiled and version > 1:
            wait_for(f"{database}/{version}")
            assert version < 4
        return made, version
    return MODELS[model](), version


def current(database: str, model: str) -> int:
    if database != "shop":
        try:
            return int(Path(database, model).read_text())
        except ValueError:
            raise ConnectionError("no database") from None
        except FileNotFoundError:
            raise NotFoundError(f"no model {model!r}") from None
    if model not in {*MODELS, "untrusted", "broken"} and not model.startswith("big"):
        raise NotFoundError(f"no model {model!r}")
    return 1


def refuse_to_start() -> Any:
    """Stand in for `load`; unpickling it ends the process."""
    os._exit(5)


class Unstartable:
    """A `load` whose arrival in the child ends the child."""

    def __call__(self, database: str, model: str, version: int | None) -> tuple[Any, int]:
        raise AssertionError

    def __reduce__(self) -> Any:
        return refuse_to_start, ()


class OnlyHere:
    """An input that can be pickled but not read again."""

    def __reduce__(self) -> Any:
        return int, ("no number",)
