"""One server for each front end and one browser for all browser tests. A page error or a foreign request fails its test.

Opening a page and starting its kernel takes seconds, so a test takes what it can do with:

- `desk(*cells)`: a page that stays open for all of these tests with these cells in it, one for each front end and ipykernel. `harness.SETUP` has
  run in its kernel;
- `open_notebook(*cells)`: a page and a kernel of the test's own, for what reloads, closes or ends them.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import overlays
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # harness.py

from harness import SETUP, Browser, Jupyter, JupyterLab, Notebook7, NotebookPage, find_chromium, wait_until

CALM = 20.0  # seconds in which a page must come to rest after a test; else it is closed, and the next test gets a new one


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/browser/" in str(item.path):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    if find_chromium() is None:
        overlays.fail_in_ci_or_skip("Chromium is missing: the browser tests drive it. On Debian: apt-get install chromium.")
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="package")
def lab(browser: Browser) -> Iterator[JupyterLab]:
    with JupyterLab() as lab:
        yield lab


@pytest.fixture(scope="package")
def notebook7(browser: Browser) -> Iterator[Notebook7]:
    with Notebook7() as server:
        yield server


@pytest.fixture
def server_of(request: pytest.FixtureRequest) -> Callable[[str], Jupyter]:
    """A function that returns the server of a front end, `lab` or `notebook7`, started when it is first asked for."""
    return request.getfixturevalue


def kernel_name(ipykernel: str) -> str:
    """Return the name of the kernel that has an ipykernel: "" is the environment's, others are those of `tests/versions`."""
    if not ipykernel:
        return "python3"
    return f"ipykernel-{ipykernel}" if f"ipykernel-{ipykernel}" in overlays.names() else ipykernel


def check_kernel(page: NotebookPage, ipykernel: str) -> None:
    """Make sure that a page's kernel has the ipykernel that is meant."""
    found = page.execute("import ipykernel", "ipykernel.__version__")
    wanted = overlays.pinned(kernel_name(ipykernel), "ipykernel") if ipykernel else importlib.metadata.version("ipykernel")
    assert f"{found}.".startswith(f"{wanted}."), f"the kernel runs ipykernel {found}, not {wanted}"


def check_page(page: NotebookPage) -> None:
    """Check what no page may do, whatever the test is about."""
    assert page.errors == []
    assert page.foreign == []


@pytest.fixture
def open_notebook(server_of: Callable[[str], Jupyter], browser: Browser) -> Iterator[Callable[..., NotebookPage]]:
    """A function that opens a notebook made of the given cells.

    `setup` is run in its kernel first; `name` opens a notebook that is there already, in one more tab.
    """
    pages: list[NotebookPage] = []

    def open_notebook(
        *cells: str, name: str = "", app: str = "lab", ipykernel: str = "", setup: str = "", wait_kernel: bool = True
    ) -> NotebookPage:
        server = server_of(app)
        if ipykernel:
            overlays.python(kernel_name(ipykernel))
        page = browser.open(server, name or server.notebook(list(cells), kernel=kernel_name(ipykernel)), wait_kernel=wait_kernel)
        pages.append(page)
        if ipykernel:
            check_kernel(page, ipykernel)
        if setup:
            page.execute(setup)
        return page

    yield open_notebook
    for page in pages:
        page.close()
        page.server.end_kernels(page.name)
    for page in pages:
        check_page(page)


@pytest.fixture(scope="package")
def desks(browser: Browser) -> dict[tuple[str, str], NotebookPage]:
    return {}  # they close with the browser


@pytest.fixture
def desk(
    desks: dict[tuple[str, str], NotebookPage], server_of: Callable[[str], Jupyter], browser: Browser
) -> Iterator[Callable[..., NotebookPage]]:
    """A function that returns an open page with the given cells in it. What the last test had there is gone."""
    taken: dict[tuple[str, str], NotebookPage] = {}

    def take(*cells: str, app: str = "lab", ipykernel: str = "") -> NotebookPage:
        place = app, ipykernel
        page = desks.get(place)
        if page is None:
            if ipykernel:
                overlays.python(kernel_name(ipykernel))
            server = server_of(app)
            page = browser.open(server, server.notebook(["pass"], kernel=kernel_name(ipykernel)))
            check_kernel(page, ipykernel)
            page.execute(SETUP)
            desks[place] = page
        taken[place] = page
        page.page.bring_to_front()
        page.put_cells(*cells)
        for seen in (page.console, page.errors, page.foreign, page.forbidden, page.interrupts):
            seen.clear()
        return page

    yield take
    try:
        for page in taken.values():
            check_page(page)
    finally:
        for place, page in taken.items():
            try:
                if page.is_busy:
                    page.interrupt()
                page.wait_idle(CALM)
                wait_until(lambda page=page: page.value("clear_desk()"), CALM)
                page.put_cells("pass")
            except Exception:  # it hangs, or is no longer what it was: the test has failed, and the next one gets a new page
                del desks[place]
                page.close()
                page.server.end_kernels(page.name)
