"""One JupyterLab and one browser for all browser tests; a page of its own for each. A page error or a foreign request fails its test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # harness.py

from harness import Browser, JupyterLab, NotebookPage


@pytest.fixture(scope="session")
def lab() -> Iterator[JupyterLab]:
    with JupyterLab() as lab:
        yield lab


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture
def open_notebook(lab: JupyterLab, browser: Browser) -> Iterator[Callable[..., NotebookPage]]:
    """A function that opens a notebook made of the given cells; `name` opens one that is there already, in one more tab."""
    pages: list[NotebookPage] = []

    def open_notebook(*cells: str, name: str = "", wait_kernel: bool = True) -> NotebookPage:
        page = browser.open(lab, name or lab.notebook(list(cells)), wait_kernel=wait_kernel)
        pages.append(page)
        return page

    yield open_notebook
    errors = [error for page in pages for error in page.errors]
    foreign = [url for page in pages for url in page.foreign]
    for page in pages:
        page.close()
    lab.end_kernels()
    assert errors == []
    assert foreign == []
