"""JupyterLab and Notebook 7 in a real browser: a server of its own, a page for each notebook, and what a person would do there.

    with JupyterLab() as lab, Browser() as browser:
        page = browser.open(lab, lab.notebook(["print('hi')"]))
        page.run_cell(0)
        page.wait_output(0, "hi")

Nothing is shared with the user's own Jupyter: every folder is a temporary one. `page.errors` holds what went wrong in the page,
`page.foreign` every request that left the server, `page.interrupts` those that asked the server to interrupt a kernel.

A server knows the kernel of this environment, `python3`, and one for each environment of `overlays`.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
import nbformat.sign
from playwright.sync_api import Error, Locator, Page, Request, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

import overlays

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
WAIT_S = 60.0  # a hang limit, not a measure
LATE_S = 5.0  # an idle kernel answers long before
# What a played run in a cell needs, see `fake_run`.
SETUP = """
%load_ext ice_notebook
from fake_run import *
from IPython.display import display
from ice_notebook.ui.widgets.run_panel import RunPanel

played = []

def show(*script, n=2, waits=True, **how):
    run = FakeRun(script, **how)
    panel = RunPanel(run, cell_waits=waits)
    display(panel)
    run.subscribe(panel)
    run.panel = panel
    played.append(run)
    return run.start()

def clear_desk():
    import ipywidgets
    for one in played:
        one.kill()
    if all(one.ended.wait(10) for one in played):
        played.clear()
    ipywidgets.Widget.close_all()
    return not played
"""
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """Return the browser's path, None where there is none."""
    return next((path for name in CHROMIUM_NAMES if (path := shutil.which(name))), None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Jupyter:
    """A server with folders of its own.

    `environment` is added to its kernels'; `settings` are the user's, by plugin; `arguments` are more of its command line.
    """

    module = ""  # what `python -m` starts
    application = ""  # the class that is configured
    own_errors: tuple[str, ...] = ()  # of the front end itself, when nothing but its own code was at work

    def __init__(
        self,
        *,
        environment: dict[str, str] | None = None,
        settings: dict[str, Any] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ice-jupyter-"))
        self.root = self.folder / "notebooks"
        self.token = secrets.token_hex(16)
        self.url = ""
        self._environment = environment or {}
        self._arguments = arguments
        self._settings = {**SETTINGS, **(settings or {})}
        self._names = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None

    def address(self, name: str) -> str:
        """Return the page of a notebook."""
        raise NotImplementedError

    def __enter__(self) -> Any:
        self.root.mkdir()
        for plugin, settings in self._settings.items():
            file = self.folder / "settings" / f"{plugin}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(settings))
        for name, python in overlays.kernels().items():
            file = self.folder / "data_dir" / "kernels" / name / "kernel.json"
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps(self._kernel_spec(name, python)))
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
            f"--{self.application}.expose_app_in_browser=True",
            *self._arguments,
        ]
        with open(self.folder / "server.log", "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.module, *arguments],
                env=self.variables(),
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
                    raise RuntimeError(f"{self.module} did not start:\n{log_text[-3000:]}") from None
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

    def variables(self) -> dict[str, str]:
        """Return the environment of the server and of its kernels."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON"))}
        for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"):
            variables[f"JUPYTER_{name}"] = str(self.folder / name.lower())
        variables["JUPYTERLAB_SETTINGS_DIR"] = str(self.folder / "settings")
        variables["JUPYTERLAB_WORKSPACES_DIR"] = str(self.folder / "workspaces")
        variables["IPYTHONDIR"] = str(self.folder / "ipython")
        variables["XDG_CACHE_HOME"] = str(self.folder / "cache")
        variables["JUPYTER_PLATFORM_DIRS"] = "1"
        variables["PYTHONPATH"] = self._python_path()
        variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables.get('PATH', '')}"
        return {**variables, **self._environment}

    def _python_path(self) -> str:
        """Kernels find this working tree and the tests' fakes; the environment's own interpreter comes first."""
        return os.pathsep.join(map(str, [REPOSITORY, REPOSITORY / "tests"]))

    def _kernel_spec(self, name: str, python: Path) -> dict[str, Any]:
        return {
            "argv": [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": name,  # another name than the environment's own, which would win over it under the same one
            "language": "python",
        }

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

    def notebook(self, cells: list[str], name: str = "", kernel: str = "python3") -> str:
        """Write a notebook of code cells and return its name."""
        name = name or f"test_{next(self._names)}.ipynb"
        metadata = {"kernelspec": {"name": kernel, "display_name": kernel, "language": "python"}}
        nbformat.write(
            nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata=metadata), self.root / name
        )
        return name

    def read(self, name: str) -> Any:
        """Return a notebook as it was saved."""
        return nbformat.read(self.root / name, as_version=4)

    def sign(self, notebook: Any) -> None:
        """Mark a notebook as one that this server's user has run."""
        nbformat.sign.NotebookNotary(data_dir=str(self.folder / "data_dir")).sign(notebook)

    def end_kernels(self, name: str | None = None) -> None:
        """End all kernels and sessions, or those of one notebook."""
        for session in self.request("/api/sessions"):
            if name is None or session["path"] == name:
                self.request(f"/api/sessions/{session['id']}", "DELETE")


class JupyterLab(Jupyter):
    """A JupyterLab server."""

    module = "jupyterlab"
    application = "LabApp"
    # 4.6, seen once when the window had changed its width, which has it move buttons of its bars. Our modules never call `removeChild`.
    own_errors = ("Failed to execute 'removeChild' on 'Node': The node to be removed is not a child of this node.",)

    def address(self, name: str) -> str:
        # Each tab has a workspace of its own: two of the same name would reset each other.
        return f"{self.url}/lab/workspaces/test-{secrets.token_hex(4)}/tree/{name}?token={self.token}"


class Notebook7(Jupyter):
    """A server of Jupyter Notebook 7."""

    module = "notebook"
    application = "JupyterNotebookApp"
    own_errors = ("Cannot read properties of undefined (reading 'schema')",)  # 7.6.5, of a setting that only JupyterLab has

    def address(self, name: str) -> str:
        return f"{self.url}/notebooks/{name}?token={self.token}"


class Browser:
    """Chromium without a window. Its pages share cookies, as tabs do."""

    def __init__(self, *, width: int = 1400, height: int = 1000) -> None:
        self._size = {"width": width, "height": height}
        self._folder = tempfile.mkdtemp(prefix="ice-chromium-")

    def __enter__(self) -> Browser:
        path = find_chromium()
        if path is None:
            raise RuntimeError("Chromium is needed, and none is on PATH. On Debian: apt-get install chromium.")
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

    def open(self, server: Jupyter, name: str, *, wait_kernel: bool = True) -> NotebookPage:
        """Open a notebook in a new tab. A kernel that is busy already cannot be waited for."""
        page = NotebookPage(self._context.new_page(), server, name)
        page.goto(wait_kernel=wait_kernel)
        return page

    def blank(self) -> Page:
        """Return a new, empty page."""
        return self._context.new_page()


class NotebookPage:
    """A notebook open in JupyterLab or Notebook 7. Cells are counted from 0."""

    def __init__(self, page: Page, server: Jupyter, name: str) -> None:
        self.page, self.server, self.name = page, server, name
        self.console: list[str] = []
        self.errors: list[str] = []
        self.foreign: list[str] = []
        self.forbidden: list[str] = []
        self.interrupts: list[str] = []
        page.on("console", lambda message: self.console.append(f"{message.type}: {message.text}"))
        page.on("pageerror", self._raised)
        page.on("request", self._requested)
        page.on("requestfailed", self._failed)

    def _requested(self, request: Request) -> None:
        own = (self.server.url, self.server.url.replace("http", "ws", 1), "data:", "blob:", "about:")
        if not request.url.startswith(own):
            self.foreign.append(request.url)
        if re.search(r"/api/kernels/[^/]+/interrupt$", request.url):
            self.interrupts.append(request.url)

    def _raised(self, error: Error) -> None:
        places = re.findall(r"(?:blob:|https?:)[^\s()]+", error.stack or "")
        is_front_end = bool(places) and all(place.startswith(f"{self.server.url}/static/") for place in places)
        if not (is_front_end and error.message in self.server.own_errors):
            self.errors.append(error.stack or str(error))

    def _failed(self, request: Request) -> None:
        # A request that the page's own policy forbids is announced, and never leaves the browser.
        if request.failure == "csp" and request.url in self.foreign:
            self.foreign.remove(request.url)
            self.forbidden.append(request.url)

    @property
    def console_errors(self) -> list[str]:
        """Return what the page's console shows in red."""
        return [line for line in self.console if line.startswith("error:")]

    def close(self) -> None:
        self.page.close()

    def goto(self, *, wait_kernel: bool = True) -> None:
        self.page.goto(self.server.address(self.name))
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
            with self.kernel_nudged():
                self.page.wait_for_function(
                    "() => window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status == 'idle'",
                    timeout=START_S * 1000,
                )

    @contextlib.contextmanager
    def kernel_nudged(self) -> Iterator[None]:
        """Connect to the kernel now and then: 7.0 to 7.3 may overlook a page's first request until somebody connects (ipykernel issue 1554)."""
        self.page.evaluate(
            """(late_ms) => { window.nudges = setInterval(() => {
            const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel;
            if (!kernel) return;
            const { wsUrl, token } = kernel.serverSettings;
            const address = `${wsUrl}api/kernels/${kernel.id}/channels?session_id=${crypto.randomUUID()}&token=${token}`;
            const other = new WebSocket(address);
            other.onmessage = () => other.close() }, late_ms) }""",
            1000 * LATE_S,
        )
        try:
            yield
        finally:
            self.page.evaluate("() => clearInterval(window.nudges)")

    def command(self, name: str, arguments: dict[str, Any] | None = None) -> None:
        """Run a command of the front end, and do not wait for it: a running cell would block."""
        self.page.evaluate(
            "([name, arguments]) => { window.jupyterapp.commands.execute(name, arguments) }", [name, arguments or {}]
        )

    # ---- cells

    def put_cells(self, *cells: str) -> None:
        """Replace all cells by new ones."""
        self.page.evaluate(
            """(cells) => { const shared = window.jupyterapp.shell.currentWidget.content.model.sharedModel;
            shared.transact(() => {
                const n = shared.cells.length;
                shared.insertCells(n, cells.map(source => ({ cell_type: 'code', source, metadata: {}, outputs: [], execution_count: null })));
                shared.deleteCellRange(0, n);
            }) }""",
            list(cells),
        )
        self.page.wait_for_function(
            """(cells) => { const found = window.jupyterapp.shell.currentWidget.content.widgets;
            return found.length == cells.length && cells.every((cell, i) => found[i].model.sharedModel.getSource() == cell) }""",
            arg=list(cells),
            timeout=WAIT_S * 1000,
        )

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

    def run_all(self, timeout_s: float = WAIT_S) -> None:
        """Run all cells, until the kernel is idle again."""
        n = self.page.evaluate("() => window.jupyterapp.shell.currentWidget.content.widgets.length")
        for i in range(n):
            self.run_cell(i, timeout_s=timeout_s)

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

    @property
    def is_busy(self) -> bool:
        """Return whether a cell runs."""
        return any(self.is_running(i) for i in range(len(self.cells().split()[0])))

    def is_running(self, i: int) -> bool:
        state: bool = self.page.evaluate(
            "(i) => window.jupyterapp.shell.currentWidget.content.widgets[i].model.executionState == 'running'", i
        )
        return state

    def execute(self, code: str, value: str = "None") -> Any:
        """Run code that belongs to no cell in the page's kernel, and return the value of an expression, by its repr. Not while a cell runs."""
        with self.kernel_nudged():
            reply = self.page.evaluate(
                """async ([code, value]) => {
                const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
                const asked = { code, silent: false, store_history: false, user_expressions: { value } };
                return (await kernel.requestExecute(asked).done).content }""",
                [code, value],
            )
        found = reply.get("user_expressions", {}).get("value", {})
        if reply["status"] != "ok" or found.get("status") != "ok":
            raise RuntimeError(f"{reply.get('ename')}: {reply.get('evalue')} {found}")
        return ast.literal_eval(found["data"]["text/plain"])

    def value(self, expression: str) -> Any:
        """Return the value of an expression in the page's kernel, by its repr."""
        return self.execute("", expression)

    def cell(self, i: int) -> Locator:
        return self.page.locator(".jp-Notebook .jp-Cell").nth(i)

    def output(self, i: int) -> Locator:
        """Return a cell's output area."""
        return self.cell(i).locator(".jp-Cell-outputArea")

    def outputs(self, i: int) -> list[str]:
        """Return the texts of a cell's outputs that can be seen."""
        return [found.inner_text().strip() for found in self.cell(i).locator(".jp-OutputArea-output").all() if found.is_visible()]

    def panel(self, i: int, n: int = 0) -> Panel:
        """Return the run panel, or the one of this number, in a cell's output."""
        return Panel(self.output(i).locator(".ice").nth(n))

    def clear_output(self, i: int) -> None:
        """Take away what a cell has shown."""
        self.page.evaluate("(i) => { window.jupyterapp.shell.currentWidget.content.widgets[i].model.outputs.clear() }", i)

    def wait_output(self, i: int, text: str | re.Pattern[str], timeout_s: float = WAIT_S) -> None:
        """Wait until a cell's visible outputs contain a text."""
        self.output(i).get_by_text(text).locator("visible=true").first.wait_for(timeout=timeout_s * 1000)

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
            self.next_frames()

    def next_frames(self) -> None:
        """Wait until the page has been laid out and drawn anew."""
        self.page.evaluate(
            "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 50))))"
        )

    def screenshot(self, path: Path, i: int | None = None) -> None:
        """Take a picture of the page, or of one cell's output."""
        path.parent.mkdir(parents=True, exist_ok=True)
        (self.page if i is None else self.output(i)).screenshot(path=str(path))


class Panel:
    """A run panel in a page, by what a person sees of it. What its elements are called is known here and in tests of its looks."""

    def __init__(self, root: Locator) -> None:
        self.root = root

    def wait_phase(self, word: str, timeout_s: float = WAIT_S) -> None:
        """Wait until the panel says that the run is `running`, `stopped`…"""
        self.root.locator(".ice-chip", has_text=re.compile(f"^{word}$", re.IGNORECASE)).first.wait_for(timeout=timeout_s * 1000)

    def wait_text(self, text: str | re.Pattern[str], timeout_s: float = WAIT_S) -> None:
        """Wait until the panel shows a text."""
        self.root.get_by_text(text).locator("visible=true").first.wait_for(timeout=timeout_s * 1000)

    @property
    def stop(self) -> Locator:
        """Return the button that stops, whatever it says just now."""
        return self.root.get_by_role("button", name=re.compile("^(Stop|Kill)"))

    def tab(self, name: str) -> Locator:
        """Return a tab by the beginning of its name."""
        return self.root.get_by_role("tab", name=re.compile(f"^({name})"))

    def scroll_to_top(self) -> None:
        """Scroll the output up as by a wheel, as far as it goes."""
        for scroller in self.root.locator(".ice-scroll:visible").all():
            scroller.evaluate("(node) => { node.dispatchEvent(new WheelEvent('wheel')); node.scrollTop = 0 }")

    @property
    def is_live(self) -> bool:
        """Return whether the panel counts as live, which hides the report."""
        return bool(self.root.evaluate("(node) => node.matches('.ice-live') || !!node.querySelector('.ice-live')"))


def wait_until(condition: Any, timeout_s: float = WAIT_S, page: NotebookPage | None = None) -> Any:
    """Wait until a condition holds and return its value. With a page, its events are handled meanwhile."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{condition} did not come true in {timeout_s} s")
        if page is not None:
            page.page.wait_for_timeout(50)
        else:
            time.sleep(0.05)
    return value


# ---- contrast

_CONTRAST = """(root) => {
    const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    const rgba = (colour) => {
        canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const over = (front, back) => front.slice(0, 3).map((c, i) => c * front[3] / 255 + back[i] * (1 - front[3] / 255));
    const ground = (node) => {
        if (!node) return [255, 255, 255];
        const own = rgba(getComputedStyle(node).backgroundColor);
        return own[3] === 255 ? own.slice(0, 3) : over(own, ground(node.parentElement));
    };
    const light = (rgb) => {
        const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const found = [];
    for (const node of root.querySelectorAll('*')) {
        const text = [...node.childNodes].filter((child) => child.nodeType === 3).map((child) => child.textContent.trim()).join('');
        if (!text || !node.checkVisibility() || node.disabled) continue;
        const back = ground(node);
        const [high, low] = [light(over(rgba(getComputedStyle(node).color), back)), light(back)].sort((a, b) => b - a);
        const ratio = (high + 0.05) / (low + 0.05);
        if (ratio < 4.5) found.push(`${node.className} ${text}: ${ratio.toFixed(2)}`);
    }
    return found;
}"""


def unreadable(shown: Locator) -> list[str]:
    """Return the texts in an element whose contrast is below 4.5 : 1, what WCAG 2.1 asks for as level AA; what is disabled is exempt."""
    found: list[str] = shown.evaluate(_CONTRAST)
    return found
