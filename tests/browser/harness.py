"""JupyterLab in a real browser: a server of its own, a page for each notebook, and what a person would do there.

    with JupyterLab() as lab, Browser() as browser:
        page = browser.open(lab, lab.notebook(["print('hi')"]))
        page.run_cell(0)
        page.wait_output(0, "hi")

Nothing is shared with the user's own Jupyter: every folder is a temporary one. `page.errors` holds what went wrong in the page,
`page.foreign` every request that left the server.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Locator, Page, Request, sync_playwright

REPOSITORY = Path(__file__).parents[2]
CHROMIUM_ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
}
START_S = 60.0
WAIT_S = 30.0  # a hang limit, not a measure


def find_chromium() -> str:
    """Return the browser's path.

    Raises:
        RuntimeError: there is none; these tests are about a real page and are not skipped.
    """
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if path := shutil.which(name):
            return path
    raise RuntimeError("The browser tests need Chromium, and none is on PATH. On Debian: apt-get install chromium.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class JupyterLab:
    """A JupyterLab server with folders of its own. `environment` is added to its kernels'; `settings` are the user's, by plugin."""

    def __init__(self, *, environment: dict[str, str] | None = None, settings: dict[str, Any] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ice-lab-"))
        self.root = self.folder / "notebooks"
        self.token = secrets.token_hex(16)
        self.url = ""
        self._environment = environment or {}
        self._settings = {**SETTINGS, **(settings or {})}
        self._names = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> JupyterLab:
        self.root.mkdir()
        for plugin, settings in self._settings.items():
            file = self.folder / "settings" / f"{plugin}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(settings))
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        arguments = [
            "--no-browser",
            "--ServerApp.ip=127.0.0.1",
            f"--ServerApp.port={port}",
            "--ServerApp.port_retries=0",
            f"--IdentityProvider.token={self.token}",
            f"--ServerApp.root_dir={self.root}",
            "--ServerApp.allow_root=True",
            "--LabApp.expose_app_in_browser=True",
        ]
        with open(self.folder / "server.log", "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", *arguments],
                env=self._variables(),
                cwd=self.root,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while True:
            try:
                self.request("/api/status")
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    log_text = self.log
                    self.__exit__()
                    raise RuntimeError(f"JupyterLab did not start:\n{log_text[-3000:]}") from None
                time.sleep(0.1)
            else:
                return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _variables(self) -> dict[str, str]:
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON"))}
        for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"):
            variables[f"JUPYTER_{name}"] = str(self.folder / name.lower())
        variables["JUPYTERLAB_SETTINGS_DIR"] = str(self.folder / "settings")
        variables["JUPYTERLAB_WORKSPACES_DIR"] = str(self.folder / "workspaces")
        variables["IPYTHONDIR"] = str(self.folder / "ipython")
        variables["XDG_CACHE_HOME"] = str(self.folder / "cache")
        variables["JUPYTER_PLATFORM_DIRS"] = "1"
        # Kernels find this working tree and the tests' fakes; the environment's own interpreter comes first.
        variables["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
        variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables.get('PATH', '')}"
        return {**variables, **self._environment}

    @property
    def log(self) -> str:
        """Return what the server wrote."""
        return (self.folder / "server.log").read_text(errors="replace")

    def request(self, path: str, method: str = "GET", data: Any = None) -> Any:
        """Ask the server's REST API."""
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, {"Authorization": f"token {self.token}"}, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def notebook(self, cells: list[str], name: str = "") -> str:
        """Write a notebook of code cells and return its name."""
        name = name or f"test_{next(self._names)}.ipynb"
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(
            nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata=kernel), self.root / name
        )
        return name

    def read(self, name: str) -> Any:
        """Return a notebook as it was saved."""
        return nbformat.read(self.root / name, as_version=4)

    def end_kernels(self) -> None:
        """End all kernels and sessions."""
        for session in self.request("/api/sessions"):
            self.request(f"/api/sessions/{session['id']}", "DELETE")


class Browser:
    """Chromium without a window. Its pages share cookies, as tabs do."""

    def __init__(self, *, width: int = 1400, height: int = 1000) -> None:
        self._size = {"width": width, "height": height}
        self._folder = tempfile.mkdtemp(prefix="ice-chromium-")

    def __enter__(self) -> Browser:
        path = find_chromium()
        self._playwright = sync_playwright().start()
        self._context = self._playwright.chromium.launch_persistent_context(
            self._folder,
            executable_path=path,
            headless=True,
            args=CHROMIUM_ARGUMENTS,
            viewport=self._size,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()
        self._playwright.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def open(self, lab: JupyterLab, name: str, *, wait_kernel: bool = True) -> NotebookPage:
        """Open a notebook in a new tab. A kernel that is busy already cannot be waited for."""
        page = NotebookPage(self._context.new_page(), lab, name)
        page.goto(wait_kernel=wait_kernel)
        return page

    def blank(self) -> Page:
        """Return a new, empty page."""
        return self._context.new_page()


class NotebookPage:
    """A notebook open in JupyterLab. Cells are counted from 0."""

    def __init__(self, page: Page, lab: JupyterLab, name: str) -> None:
        self.page, self.lab, self.name = page, lab, name
        self.console: list[str] = []
        self.errors: list[str] = []
        self.foreign: list[str] = []
        self.forbidden: list[str] = []
        own = (lab.url, lab.url.replace("http", "ws", 1), "data:", "blob:", "about:")
        page.on("console", lambda message: self.console.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(own) else self.foreign.append(request.url))
        page.on("requestfailed", self._failed)

    def _failed(self, request: Request) -> None:
        # A request that the page's own policy forbids is announced, and never leaves the browser.
        if request.failure == "csp" and request.url in self.foreign:
            self.foreign.remove(request.url)
            self.forbidden.append(request.url)

    def close(self) -> None:
        self.page.close()

    def goto(self, *, wait_kernel: bool = True) -> None:
        # Each tab has a workspace of its own: two of the same name would reset each other.
        workspace = f"test-{secrets.token_hex(4)}"
        self.page.goto(f"{self.lab.url}/lab/workspaces/{workspace}/tree/{self.name}?token={self.lab.token}")
        self.wait_ready(wait_kernel=wait_kernel)

    def reload(self, *, wait_kernel: bool = False) -> None:
        self.page.reload()
        self.wait_ready(wait_kernel=wait_kernel)

    def wait_ready(self, *, wait_kernel: bool = True) -> None:
        """Wait for the notebook's cells and, if wanted, for an idle kernel."""
        self.page.wait_for_function(
            "() => window.jupyterapp?.shell.currentWidget?.content?.widgets?.length", timeout=START_S * 1000
        )
        if wait_kernel:
            self.page.wait_for_function(
                "() => window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status == 'idle'",
                timeout=START_S * 1000,
            )

    def command(self, name: str, arguments: dict[str, Any] | None = None) -> None:
        """Run a command of JupyterLab, and do not wait for it: a running cell would block."""
        self.page.evaluate(
            "([name, arguments]) => { window.jupyterapp.commands.execute(name, arguments) }", [name, arguments or {}]
        )

    # ---- cells

    def run_cell(self, i: int, *, wait: bool = True, timeout_s: float = WAIT_S) -> None:
        """Run one cell. With `wait`, until the kernel is idle again."""
        self.page.evaluate("(i) => { window.jupyterapp.shell.currentWidget.content.activeCellIndex = i }", i)
        before = self._executions(i)
        self.command("notebook:run-cell")
        self.page.wait_for_function(
            """([i, before]) => { const cell = window.jupyterapp.shell.currentWidget.content.widgets[i].model;
            return cell.executionState == 'running' || cell.executionCount !== before }""",
            arg=[i, before],
            timeout=timeout_s * 1000,
        )
        if wait:
            self.wait_idle(timeout_s)

    def _executions(self, i: int) -> int | None:
        count: int | None = self.page.evaluate(
            "(i) => window.jupyterapp.shell.currentWidget.content.widgets[i].model.executionCount", i
        )
        return count

    def wait_idle(self, timeout_s: float = WAIT_S) -> None:
        """Wait until no cell runs and the kernel says that it is idle."""
        self.page.wait_for_function(
            """() => { const panel = window.jupyterapp.shell.currentWidget;
            const cells = panel.content.widgets.filter(cell => cell.model.type == 'code');
            return panel.sessionContext.session?.kernel?.status == 'idle' && cells.every(cell => cell.model.executionState != 'running') }""",
            timeout=timeout_s * 1000,
        )

    def is_running(self, i: int) -> bool:
        state: bool = self.page.evaluate(
            "(i) => window.jupyterapp.shell.currentWidget.content.widgets[i].model.executionState == 'running'", i
        )
        return state

    def cell(self, i: int) -> Locator:
        return self.page.locator(".jp-Notebook .jp-Cell").nth(i)

    def output(self, i: int) -> Locator:
        """Return a cell's output area."""
        return self.cell(i).locator(".jp-Cell-outputArea")

    def outputs(self, i: int) -> list[str]:
        """Return the texts of a cell's outputs that can be seen."""
        return [found.inner_text() for found in self.cell(i).locator(".jp-OutputArea-output").all() if found.is_visible()]

    def wait_output(self, i: int, text: str, timeout_s: float = WAIT_S) -> None:
        """Wait until a cell's visible outputs contain a text."""
        self.output(i).get_by_text(text).first.wait_for(timeout=timeout_s * 1000)

    def cells(self) -> str:
        """Return the cells' types and the notebook's mode, as `ccm command`: what a stray shortcut changes."""
        found: str = self.page.evaluate(
            """() => { const notebook = window.jupyterapp.shell.currentWidget.content;
            return notebook.widgets.map(cell => cell.model.type[0]).join('') + ' ' + notebook.mode }""",
        )
        return found

    # ---- what a person does

    def click(self, text: str, cell: int | None = None) -> None:
        """Click the button with this text, in one cell's output or anywhere in the notebook."""
        scope = self.page.locator(".jp-Notebook") if cell is None else self.output(cell)
        scope.get_by_role("button", name=text, exact=True).first.click()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def interrupt(self) -> None:
        self.command("notebook:interrupt-kernel")

    def restart_kernel(self) -> None:
        """Restart the kernel without the dialog."""
        self.page.evaluate("() => { window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart() }")

    def save(self) -> None:
        self.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")

    def set_theme(self, *, dark: bool) -> None:
        theme = "JupyterLab Dark" if dark else "JupyterLab Light"
        self.page.evaluate("(theme) => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", theme)
        self.page.wait_for_function("(light) => document.body.dataset.jpThemeLight == light", arg=str(not dark).lower())

    def set_width(self, output_px: int) -> None:
        """Make the window so wide that a cell's output is about this wide. The side bar is closed."""
        self.page.evaluate("() => { window.jupyterapp.shell.collapseLeft() }")
        for _ in range(3):
            box = self.page.locator(".jp-Cell-outputArea .jp-OutputArea-output").first.bounding_box()
            size = self.page.viewport_size
            assert box is not None
            assert size is not None
            self.page.set_viewport_size({"width": size["width"] + output_px - round(box["width"]), "height": size["height"]})
            self.page.wait_for_timeout(200)

    def screenshot(self, path: Path, i: int | None = None) -> None:
        """Take a picture of the page, or of one cell's output."""
        path.parent.mkdir(parents=True, exist_ok=True)
        (self.page if i is None else self.output(i)).screenshot(path=str(path))


def wait_until(condition: Any, timeout_s: float = WAIT_S, page: NotebookPage | None = None) -> None:
    """Wait until a condition holds. With a page, its events are handled meanwhile."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{condition} did not come true in {timeout_s} s")
        if page is not None:
            page.page.wait_for_timeout(50)
        else:
            time.sleep(0.05)
