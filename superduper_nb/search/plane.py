"""Vectors as points of a plane: their first two principal components, or UMAP's layout.

UMAP runs in a process of its own, ``python -m superduper_nb.search.plane FOLDER``: it can be ended at any moment, it
takes no turn from whoever started it, and its import, which compiles for seconds, is nobody else's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, Final

import numpy as np

from superduper_nb.errors import InvalidInputError, ModelError
from superduper_nb.search.measures import Floats

__all__ = ["Umap", "principal"]

_COMPONENTS: Final = 50
"""More of them change no neighbours, and take most of the time."""
_NEIGHBOURS: Final = 15
_LOOK_EVERY_S: Final = 0.25
_VECTORS, _PLACES, _SEEN, _SAID = "vectors.npy", "places.npy", "seen", "said"


def principal(vectors: Floats) -> tuple[Floats, float]:
    """Return the first two principal components, and the share of the variance that they hold."""
    centred = vectors - vectors.mean(axis=0)
    if centred.shape[1] == 1:
        centred = np.hstack([centred, np.zeros_like(centred)])
    values, axes = np.linalg.eigh(centred.T @ centred)
    first = axes[:, [-1, -2]]
    first = first * np.where(np.take_along_axis(first, np.abs(first).argmax(axis=0)[None], 0) < 0, -1, 1)
    share = float(values[-2:].sum() / total) if (total := values.sum()) > 0 else 1.0
    return (centred @ first).astype(np.float32), share


class Umap:
    """A layout in which neighbours stay neighbours (McInnes 2018), while it is computed.

    Attributes
    ----------
    places : array of shape (n, 2) or None
        The points, when all is done.
    """

    def __init__(self, vectors: Floats) -> None:
        self._vectors = vectors
        self.places: Floats | None = None

    def look(self) -> Iterator[tuple[int, int]]:
        """Yield how many epochs of how many are done, again and again until all are; who stops asking ends it.

        Raises
        ------
        InvalidInputError
            The package is missing here.
        ModelError
            The process failed.
        """
        if find_spec("umap") is None:
            raise InvalidInputError("this layout needs umap-learn where jobs run: pip install 'superduper-nb[map]'.")
        with TemporaryDirectory(prefix="superduper-layout-") as name:
            folder = Path(name)
            np.save(folder / _VECTORS, _reduced(self._vectors))
            with (folder / _SAID).open("wb") as said, _started(folder, said) as child:
                try:
                    while not _ended(child):
                        yield _seen(folder)
                finally:
                    child.kill()
            if child.returncode:
                raise ModelError(f"UMAP ended with code {child.returncode}: {_last_line(folder / _SAID)}")
            self.places = _read(folder / _PLACES)


def _started(folder: Path, said: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", __name__, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said)


def _ended(child: subprocess.Popen[bytes]) -> bool:
    with suppress(subprocess.TimeoutExpired):
        child.wait(_LOOK_EVERY_S)
        return True
    return False


def _seen(folder: Path) -> tuple[int, int]:
    try:
        done, total = (folder / _SEEN).read_text().split()
        return int(done), int(total)
    except (OSError, ValueError):  # none yet, or half of it
        return 0, 0


def _last_line(path: Path) -> str:
    lines = path.read_text("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"


def _reduced(vectors: Floats) -> Floats:
    if vectors.shape[1] <= _COMPONENTS:
        return vectors
    centred = vectors - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    return np.asarray(centred @ axes[:, -_COMPONENTS:], dtype=np.float32)


# --- in the process of its own -----------------------------------------------------------------------------------


class _Epochs:
    """What tqdm, through which UMAP counts its epochs, takes for a terminal."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, text: str) -> None:
        if told := text.strip():
            self._path.write_text(told)

    def flush(self) -> None:
        """Do nothing: tqdm asks for it."""


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        return np.lib.format.read_array(file)  # numbers only: it refuses a pickle


def _laid_out(vectors: Floats, told: _Epochs) -> Floats:
    from umap import UMAP

    warnings.simplefilter("ignore")  # it tells of its own threads and spectra
    bar = {"file": told, "bar_format": "{n_fmt} {total_fmt}", "disable": False}
    # With few points there are fewer axes than its own first places need.
    init, neighbours = "pca" if len(vectors) > _COMPONENTS else "random", min(_NEIGHBOURS, len(vectors) - 1)
    return np.asarray(UMAP(n_neighbors=neighbours, init=init, tqdm_kwds=bar).fit_transform(vectors), dtype=np.float32)


def _end_with_parent() -> None:
    os.read(0, 1)  # nothing is ever sent: it returns when the other side has ended, however that ended
    os._exit(1)


def _main(folder: Path) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    np.save(folder / _PLACES, _laid_out(_read(folder / _VECTORS), _Epochs(folder / _SEEN)))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
