"""One module loads pickles: a lint over the package's own code, which itself is tried on planted violations."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import superduper_nb

ROOT = Path(superduper_nb.__file__).parent
MODULES = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "skops"}
CALLS = {"torch.load", "pandas.read_pickle", "pd.read_pickle", "yaml.load", "yaml.unsafe_load", "numpy.load", "np.load"}
CALLS |= {"torch.jit.load", "torch.hub.load"}
ALLOWED = {
    "components/artifacts.py": "verifies signatures first",
    "components/fingerprint.py": "only writes, into a hash",
    "components/local_code.py": "only says how code is written",
    "documents/types.py": "the type 'pickle', which loads nothing that is not vouched for",
    "serving/outcomes.py": "between the model server and its own child process",
    "serving/server.py": "between the model server and its own child process",
    "serving/wire.py": "between the model server and its own child process",
    "serving/child.py": "between the model server and its own child process",
}


def violations(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module.partition(".")[0] in MODULES and not node.level:
                yield module
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            safe = name == "torch.load" and any(k.arg == "weights_only" for k in node.keywords)
            if (name in CALLS and not safe) or any(k.arg == "allow_pickle" for k in node.keywords):
                yield name
            if name in ("__import__", "importlib.import_module", "import_module") and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant) and str(first.value).partition(".")[0] in MODULES:
                    yield str(first.value)


def test_only_artifacts_unpickles() -> None:
    found = {}
    for path in ROOT.rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        if name not in ALLOWED and (bad := list(violations(path.read_text()))):
            found[name] = bad
    assert found == {}


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "import pickle as p",
        "from cloudpickle import loads",
        "def f():\n    from joblib import load",
        "import torch\ntorch.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import pandas as pd\npd.read_pickle('x')",
        "m = __import__('dill')",
        "import importlib\nimportlib.import_module('marshal')",
    ],
)
def test_the_lint_sees(planted: str) -> None:
    assert list(violations(planted))


def test_fingerprints_are_never_loaded() -> None:
    source = (ROOT / "components" / "fingerprint.py").read_text()
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)}
    assert not any(call.endswith((".load", ".loads")) for call in calls)
