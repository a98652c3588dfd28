"""A real JupyterLab with the extension, a real browser in front of it, and its notebooks as a reader sees them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex, token_urlsafe
from typing import Any
from urllib.parse import urlsplit

import pytest

from scripts import demo

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SHOTS = demo.BUILD / "screenshots"
PANEL = demo.BUILD / "labextension"
THEMES = ("Light", "Dark")
USE = "%load_ext superduper_nb\n%sddb connect\n%sddb use lab.{} --as docs"
"""The first cell of a notebook with a collection of its own."""
HARMLESS = ("favicon",)
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # every output stays in the page, to be looked at
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab, and its folder of notebooks."""

    url: str
    token: str
    work: Path


@contextmanager
def running_lab(home: Path, base_url: str = "/", *, ours: bool = True) -> Iterator[Lab]:
    """Start JupyterLab with its files in `home`, and the quickstart in its folder; stop it, and see that it is gone.

    With `ours` False it has nothing of this package.
    """
    work = home / "work"
    work.mkdir()
    shutil.copy(demo.NOTEBOOK, work)
    for name, values in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    if PANEL.exists() and ours:
        extensions = home / "data" / "labextensions"
        extensions.mkdir(parents=True)
        (extensions / "superduper-nb").symlink_to(PANEL)
    token, mark = token_urlsafe(24), token_hex(8)
    more = {"JUPYTER_TOKEN": token, demo.MARK: mark, "JUPYTERLAB_SETTINGS_DIR": str(home / "settings")}
    more["JUPYTER_PREFER_ENV_PATH"] = "0"  # else the panel that was installed once comes before the one that was built
    more["OMP_NUM_THREADS"] = "1"  # torch gets slow when more threads than free cores wait for each other
    options = ["--no-browser", f"--ServerApp.port={demo.free_port()}", f"--ServerApp.root_dir={work}"]
    options += ["--expose-app-in-browser", "--ServerApp.open_browser=False"]
    options += ["--JupyterNotebookApp.expose_app_in_browser=True"]
    options += [f"--ServerApp.base_url={base_url}", f"--ServerApp.jpserver_extensions={{'superduper_nb': {ours}}}"]
    with (home / "server.log").open("w") as log:
        command = demo.server_command("lab", options)
        server = subprocess.Popen(command, env=demo.environment(home, **more), stdout=log, stderr=log)
        try:
            url = demo.wait_for(lambda: demo.server_url(home, server), 90, "JupyterLab to start")
            yield Lab(url, token, work)
        finally:
            demo.stop(server)
            left = demo.processes_left(mark)
            for process in left:
                process.kill()
    assert not left, left


@contextmanager
def chromium() -> Iterator[Any]:
    """Start Chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    if not os.access(CHROMIUM, os.X_OK):
        pytest.skip(f"there is no {CHROMIUM}")
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield made
        made.close()


@dataclass
class Book:
    """A notebook in JupyterLab, as its reader sees it."""

    page: Any
    lab: Lab
    complaints: list[str] = field(default_factory=list)
    """What the console said in red, and dialogs that a script opened."""

    def open(self, name: str, app: str = "lab") -> None:
        """Open a notebook in ``lab``, or in Notebook 7 (``notebook``)."""
        page = self.page
        page.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self._asks(request.url))
        page.on("dialog", lambda dialog: (self.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        place = f"lab/workspaces/{Path(name).stem}/tree" if app == "lab" else "notebooks"
        page.goto(f"{self.lab.url}{place}/{name}?token={self.lab.token}")
        page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=90_000)
        page.wait_for_function(f"{_PANEL}.sessionContext.session?.kernel?.status === 'idle'", timeout=90_000)

    def _asks(self, url: str) -> None:
        """Complain of whatever is fetched from elsewhere than our server: everything works offline."""
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.netloc != urlsplit(self.lab.url).netloc:
            self.complaints.append(f"asks {url}")

    def cell(self, number: int) -> Any:
        """Return the element of a cell."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(number)

    def start(self, number: int) -> None:
        """Run a cell as its reader does: a click into it, and Shift-Enter."""
        self.cell(number).locator(".jp-InputPrompt").click()
        self.page.evaluate(f"{_PANEL}.content.activeCellIndex = {number}")
        self.page.keyboard.press("Shift+Enter")

    def finish(self, number: int, seconds: float = 120.0) -> None:
        """Wait until a cell ended; fail with its error where it has one."""
        done = f"{_PANEL}.content.widgets[{number}].model.executionCount !== null"
        idle = f"{_PANEL}.sessionContext.session.kernel.status === 'idle'"
        self.page.wait_for_function(f"{done} && {idle}", timeout=seconds * 1000)
        errors = [output for output in self.outputs(number) if output["output_type"] == "error"]
        assert errors == [], errors

    def run(self, number: int, seconds: float = 120.0) -> None:
        """Run a cell to its end."""
        self.start(number)
        self.finish(number, seconds)

    def outputs(self, number: int) -> list[dict[str, Any]]:
        """Return the outputs of a cell, as they would be saved."""
        found = f"{_PANEL}.content.widgets[{number}].model.outputs"
        outputs: list[dict[str, Any]] = self.page.evaluate(
            f"Array.from({{length: {found}.length}}, (_, i) => {found}.get(i).toJSON())"
        )
        return outputs

    def output(self, number: int) -> Any:
        """Return the outputs of a cell."""
        return self.cell(number).locator(".jp-Cell-outputWrapper")

    def theme(self, name: str) -> None:
        """Switch between ``Light`` and ``Dark``."""
        self.page.evaluate(f"jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {name}'}})")
        light = "true" if name == "Light" else "false"
        self.page.wait_for_selector(f'body[data-jp-theme-light="{light}"]', state="attached", timeout=20_000)
        # JupyterLab removes its splash twice, and fails, where the next change comes before the first is gone.
        self.page.wait_for_selector("#jupyterlab-splash", state="detached", timeout=20_000)

    def shoot(self, name: str, number: int, theme: str = "Light") -> None:
        """Keep a picture of a cell."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        cell = self.cell(number)
        cell.scroll_into_view_if_needed()
        cell.screenshot(path=str(SHOTS / f"{name}-{theme.lower()}.png"), animations="disabled")


_PANEL = "jupyterapp.shell.currentWidget"


def violations(page: Any, *views: str) -> list[tuple[str, str]]:
    """Return what axe-core finds wrong in parts of a page, and where."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    serious = []
    for view in views:
        found = axe.run(page, context=view).response["violations"]
        serious += [
            (broken["id"], broken["nodes"][0]["html"][:200])
            for broken in found
            if broken["impact"] in ("serious", "critical")
        ]
    return serious


def shoot(book: Book, name: str, number: int) -> None:
    """Keep a picture of a cell in each theme; the light one is on afterwards."""
    for theme in reversed(THEMES):
        book.theme(theme)
        book.shoot(name, number, theme)


def check(book: Book) -> None:
    """Check that nothing went wrong in the page."""
    complaints = [text for text in book.complaints if not any(word in text for word in HARMLESS)]
    assert complaints == []
