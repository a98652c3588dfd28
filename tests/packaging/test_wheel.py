"""What `pip install` puts on a machine: the package, its type marker, the file that enables the server extension."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PANEL = ROOT / "build" / "labextension"
PANEL_AT = "share/jupyter/labextensions/superduper-nb/"
ENABLED_BY = Path("etc/jupyter/jupyter_server_config.d/superduper_nb.json")


def pip(*arguments: str, python: Path | None = None) -> None:
    target = ["--python", str(python)] if python else []
    command = [sys.executable, "-m", "pip", *target, *arguments, "--quiet", "--disable-pip-version-check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), ".")
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def fresh_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of a new environment that sees the installed dependencies, but not this package."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    ).strip()
    # A plain path line: .pth files over there are not read, so an editable install of this package stays unseen.
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def run(python: Path, code: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "JUPYTER_CONFIG_DIR": str(tmp_path), "JUPYTER_PREFER_ENV_PATH": "1"}
    return subprocess.run([python, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)


def test_wheel_holds_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    package = ROOT / "superduper_nb"
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and path.suffix != ".pyc" and "__pycache__" not in path.parts
    }
    assert "superduper_nb/py.typed" in expected
    assert expected == {name for name in wheel.namelist() if name.startswith("superduper_nb/")}


def test_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0].partition("-")[0] for name in wheel.namelist()}
    assert tops == {"superduper_nb"}
    data = [name.partition(".data/data/")[2] for name in wheel.namelist() if ".data/" in name]
    panel = [f"{PANEL_AT}{path.relative_to(PANEL).as_posix()}" for path in PANEL.rglob("*") if path.is_file()]
    assert sorted(data) == sorted([ENABLED_BY.as_posix(), *panel])


def test_metadata_names_licence_python_and_extras(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {"mongod", "text", "dev", "bench", "all"} <= set(metadata.get_all("Provides-Extra", []))
    assert "Framework :: Jupyter" in metadata.get_all("Classifier", [])


def test_install_enables_the_server_extension_and_uninstall_takes_it_away(fresh_python: Path, tmp_path: Path) -> None:
    enabled_by = fresh_python.parent.parent / ENABLED_BY
    assert run(fresh_python, "import superduper_nb", tmp_path).returncode == 1

    pip("install", "--no-deps", "--no-build-isolation", ".", python=fresh_python)
    listed = run(fresh_python, "from jupyter_server.serverapp import main; main(['extension', 'list'])", tmp_path)
    lines = [line for line in (listed.stdout + listed.stderr).splitlines() if "superduper_nb" in line]
    assert enabled_by.is_file()
    assert any("enabled" in line for line in lines), listed.stderr
    assert any("OK" in line for line in lines), listed.stderr
    if PANEL.exists():
        listed = run(fresh_python, "from jupyterlab.labextensions import main; main(['list'])", tmp_path)
        (line,) = (line for line in (listed.stdout + listed.stderr).splitlines() if "superduper-nb" in line)
        assert "enabled" in line
        assert "OK" in line
    helped = subprocess.run(
        [fresh_python.parent / "jupyter-superduper", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "jupyter superduper" in helped.stdout

    pip("uninstall", "--yes", "superduper-nb", python=fresh_python)
    assert not enabled_by.exists()
