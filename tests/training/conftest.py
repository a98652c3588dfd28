"""A client that does everything in this process, and real data: handwritten digits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pymongo.database import Database
from training_models import DIGITS, pixels

import superduper_nb as sd

Document = dict[str, Any]


@pytest.fixture(scope="package", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the secret that signs models in one folder, for the workers that outlive a test."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("DATA", "RUNTIME", "CONFIG"):
            patch.setenv(f"JUPYTER_{kind}_DIR", str(tmp_path_factory.mktemp(kind.lower())))
        yield


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """Let torch compute in one thread: two wait for each other where there are no more cores than tests."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def client(mongo_uri: str) -> Iterator[sd.Client[Document]]:
    with sd.Client[Document](mongo_uri) as made:
        yield made


@pytest.fixture
def docs(client: sd.Client[Document], database: Database[Document]) -> sd.Collection[Document]:
    return client[database.name]["docs"]


@pytest.fixture(scope="package")
def digit_rows() -> list[Document]:
    """Return 900 handwritten digits with their names, in folds that never change; a few wait for a label."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    rows: list[Document] = [
        {"_id": i, "img": pixels(image), "label": DIGITS[label], "_fold": "valid" if i % 5 == 0 else "train"}
        for i, (image, label) in enumerate(zip(x[:900].astype(np.float32), y[:900], strict=True))
    ]
    for row in rows[891:900]:
        del row["label"]
    return rows


@pytest.fixture
def digits(docs: sd.Collection[Document], digit_rows: list[Document]) -> sd.Collection[Document]:
    """Return a collection of digits with a small net registered as ``net``."""
    from training_models import net

    docs.create_model("net", net())
    docs.insert_many([dict(row) for row in digit_rows])
    return docs
