"""Code defined in a notebook: one hash for one content, and loadable in another process."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from pymongo.database import Database

from superduper_nb.components import ComponentStore
from superduper_nb.errors import InvalidInputError, ModelError

OBJECTS = {
    "function": "def obj(x):\n    import math\n    return math.sqrt(x) + 1",
    "lambda": "obj = lambda x: [y for y in range(x) if y % 2]",
    "closure": "def make(n):\n    def inner(x):\n        return x * n\n    return inner\nobj = make(3)",
    "globals": "import numpy as np\nSCALE = 4\ndef helper(x):\n    return np.sum(x) * SCALE\n"
    "def obj(x):\n    return helper(x)",
    "defaults": "def obj(x, *, k=(1, 2), table={'a': 1, 'b': [2]}):\n    '''Doc.'''\n    return x, k, table",
    "class": "class Model:\n    size = 3\n    def __init__(self):\n        self.w = [1, 2]\n"
    "    def __call__(self, x):\n        return super().__repr__() and x * self.size\nobj = Model()",
    "placed": "class Model:\n    __firstlineno__ = __import__('sys')._getframe().f_lineno  # as Python 3.13 does\n"
    "    def __call__(self, x):\n        return x\nobj = Model()",
    "dataclass": "from dataclasses import dataclass\n@dataclass\nclass M:\n    a: int = 1\n    def predict(self, xs):\n"
    "        return [x + self.a for x in xs]\nobj = M(5)",
    "partial": "from functools import partial\ndef f(a, b):\n    return a + b\nobj = partial(f, 2)",
    "generic": "from __future__ import annotations\nfrom enum import Enum\nclass Colour(Enum):\n    RED = 1\n"
    "def obj(x: Colour) -> dict[str, Colour]:\n    return {'a': Colour.RED}",
    "numpy": "import numpy as np\nclass M:\n    def __init__(self):\n        self.w = np.arange(5.0)\n"
    "    def __call__(self, x):\n        return x + self.w\nobj = M()",
    "torch": "import torch\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    "        torch.manual_seed(0)\n        self.l = torch.nn.Linear(3, 2)\n"
    "        self.register_buffer('b', torch.ones(2))\n"
    "    def preprocess(self, x):\n        return torch.tensor(x)\n"
    "    def forward(self, x):\n        return self.l(x) + self.b\n"
    "obj = Net()",
    "sklearn": "from sklearn.linear_model import LinearRegression\n"
    "obj = LinearRegression().fit([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])",
}

# Runs each source as a cell: in __main__, from a file with a name of its own, a second time from another one.
SCRIPT = """
import json, linecache, random, sys
sys.path.insert(0, {root!r})
from superduper_nb.components.fingerprint import fingerprint
def cell(source, name):
    linecache.cache[name] = (len(source), None, [line + chr(10) for line in source.splitlines()], name)
    exec(compile(source, name, "exec"), globals())
    return obj
{before}
found = {{}}
for name, source in {sources!r}:
    once = fingerprint(cell(source, "/tmp/ipykernel_%d/%d.py" % (random.randrange(10**6), random.randrange(10**6))))
    again = fingerprint(cell(chr(10) * 3 + source, "/tmp/again.py"))
    found[name] = [once, again]
print(json.dumps(found))
"""


def fingerprints(sources: dict[str, str], *, before: str = "", seed: str = "0") -> dict[str, list[str]]:
    root = str(Path(__file__).parents[2])
    code = SCRIPT.format(root=root, before=before, sources=list(sources.items()))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={"PYTHONHASHSEED": seed}
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def hashes() -> dict[str, list[str]]:
    """Return the hashes of all objects in a fresh kernel."""
    return fingerprints(OBJECTS, seed="1")


@pytest.fixture(scope="module")
def later(hashes: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return them in a kernel where much else has been imported, in another order."""
    busy = "import json, decimal, numpy.linalg, numpy.random, torch, sklearn.linear_model, enum\nunrelated = 5"
    return fingerprints(dict(reversed(OBJECTS.items())), before=busy, seed="2")


@pytest.mark.parametrize("name", OBJECTS)
def test_one_content_has_one_hash_in_every_kernel_and_run_of_a_cell(
    name: str, hashes: dict[str, list[str]], later: dict[str, list[str]]
) -> None:
    assert len({*hashes[name], *later[name]}) == 1


CHANGES = {
    "function": ("+ 1", "+ 2"),
    "lambda": ("% 2", "% 3"),
    "closure": ("make(3)", "make(4)"),
    "globals": ("SCALE = 4", "SCALE = 5"),
    "defaults": ("[2]", "[3]"),
    "class": ("size = 3", "size = 4"),
    "dataclass": ("M(5)", "M(6)"),
    "partial": ("f, 2", "f, 3"),
    "generic": ("RED = 1", "RED = 2"),
    "numpy": ("arange(5.0)", "arange(6.0)"),
    "torch": ("manual_seed(0)", "manual_seed(1)"),
    "sklearn": ("[0.0, 1.0, 2.0])", "[0.0, 1.0, 3.0])"),
}


def test_other_content_has_another_hash(hashes: dict[str, list[str]]) -> None:
    changed = {name: OBJECTS[name].replace(*change) for name, change in CHANGES.items()}
    assert all(changed[name] != OBJECTS[name] for name in changed)
    found = fingerprints(changed)
    assert [name for name in changed if found[name] == hashes[name]] == []


WRITER = """
import sys
sys.path.insert(0, {root!r})
import pymongo
from superduper_nb.cluster.mongod import connect_options
from superduper_nb.components import ComponentStore
client = pymongo.MongoClient({uri!r}, **connect_options())
def put(obj, name):
    print(ComponentStore(client[{name!r}]).put("model", name, {{}}, obj=obj)[0].version)
{source}
put(obj, "m")
client.close()
"""


def test_what_a_notebook_defined_loads_in_another_process(
    database: Database[dict[str, Any]], mongo_uri: str, home: Path
) -> None:
    cells = "".join(f"{OBJECTS[kind]}\nput(obj, {kind!r})\n" for kind in ("class", "globals", "torch"))
    code = WRITER.format(root=str(Path(__file__).parents[2]), source=cells, uri=mongo_uri, name=database.name)
    for _ in range(2):  # the second process registers the same
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stdout.split() == ["1"] * 4, done.stderr
    store = ComponentStore(database)
    loaded = {kind: store.load(store.get("model", kind)) for kind in ("class", "globals", "torch")}
    for kind, obj in loaded.items():
        assert store.put("model", kind, {}, obj=obj)[1] is False  # what was loaded is what is there
    assert (loaded["class"](2), loaded["globals"]([1, 2])) == (6, 12)
    assert tuple(loaded["torch"](torch.zeros(1, 3)).shape) == (1, 2)


def test_a_module_beside_the_notebook_travels_with_it(
    database: Database[dict[str, Any]], mongo_uri: str, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "my_helpers.py").write_text("def triple(x):\n    return 3 * x\n")
    root = str(Path(__file__).parents[2])
    source = f"sys.path.insert(0, {str(tmp_path)!r})\nfrom my_helpers import triple as obj"
    code = WRITER.format(root=root, source=source, uri=mongo_uri, name=database.name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout.strip() == "1", done.stderr
    assert "my_helpers" not in sys.modules
    store = ComponentStore(database)
    assert store.load(store.get("model", "m"))(2) == 6
    for factor, version in ((3, "1"), (4, "2")):  # other code in that module is other content
        (tmp_path / "my_helpers.py").write_text(f"\n\ndef triple(x):\n    return {factor} * x\n")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.stdout.strip() == version, done.stderr
    assert store.load(store.get("model", "m"))(2) == 8


class Holder:
    """Holds something that can't be stored, two levels down."""

    def __init__(self) -> None:
        self.fine = 1
        self.inner = Inner()


class Inner:
    def __init__(self) -> None:
        self.guard = threading.Lock()

    def __call__(self, x: Any) -> Any:
        return x


@pytest.mark.parametrize(
    ("what", "wanted"),
    [
        ("holder", "guard of Inner in inner"),
        ("dict", "guard of dict"),
        ("closure", "lock of function"),
        ("global", "OUTSIDE of function in object"),
    ],
)
def test_what_can_not_be_stored_is_named(
    what: str, wanted: str, database: Database[dict[str, Any]], home: Path
) -> None:
    lock = threading.Lock()
    notebook: dict[str, Any] = {"__name__": "__main__", "OUTSIDE": lock}
    exec("def outside(x): return OUTSIDE", notebook)
    objects: dict[str, Any] = {"holder": Holder(), "dict": {"guard": lock}, "closure": lambda: lock}
    objects["global"] = {"object": notebook["outside"]}
    store = ComponentStore(database)
    with pytest.raises(InvalidInputError, match=wanted):
        store.put("model", "m", {}, obj=objects[what])
    assert store.versions("model", "m") == []
    assert database["_sddb.fs.files"].count_documents({}) == 0


def test_a_missing_import_is_said_when_it_is_loaded(
    database: Database[dict[str, Any]], mongo_uri: str, home: Path, tmp_path: Path
) -> None:
    package, here = tmp_path / "elsewhere", tmp_path / "here"
    package.mkdir()
    here.mkdir()
    (package / "only_there.py").write_text("def obj(x):\n    return x\n")
    root = str(Path(__file__).parents[2])
    source = f"sys.path.insert(0, {str(package)!r})\nfrom only_there import obj"
    code = WRITER.format(root=root, source=source, uri=mongo_uri, name=database.name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here, check=False)
    assert done.stdout.strip() == "1", done.stderr
    store = ComponentStore(database)
    with pytest.raises(ModelError, match=r"models/m does not load here: ModuleNotFoundError.*only_there"):
        store.load(store.get("model", "m"))
