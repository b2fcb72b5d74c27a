"""The shipped notebooks: executed, in order, without anything of the machine that executed them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PATHS = re.compile(r"(?:/home/|/root\b|/tmp\b|/var/|/usr/|/opt/|/work\b|/Users/|site-packages|0x[0-9a-f]{6,})")

LAUNCH = re.compile(r"^%%?elastic_launch", re.MULTILINE)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> Any:
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks_and_they_are_numbered() -> None:
    assert [path.name[:3] for path in NOTEBOOKS] == [f"{n:02d}_" for n in range(1, len(NOTEBOOKS) + 1)]
    assert len(NOTEBOOKS) >= 3


def test_every_code_cell_was_executed_in_order(notebook: Any) -> None:
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))


def test_a_cell_shows_an_error_exactly_when_it_is_meant_to(notebook: Any) -> None:
    for cell in code_cells(notebook):
        has_error = any(output.output_type == "error" for output in cell.outputs)
        assert has_error == ("raises-exception" in cell.metadata.get("tags", [])), cell.source


def test_no_widget_state_is_stored(notebook: Any) -> None:
    assert "widgets" not in notebook.metadata
    kinds = {kind for cell in code_cells(notebook) for output in cell.outputs for kind in output.get("data", {})}
    assert not {kind for kind in kinds if "widget" in kind}


def test_nothing_of_the_machine_is_stored(notebook: Any) -> None:
    for cell in code_cells(notebook):
        assert not PATHS.search(nbformat.writes(nbformat.v4.new_notebook(cells=[cell]))), cell.source
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"


def test_every_launch_shows_its_report(notebook: Any) -> None:
    launches = [cell for cell in code_cells(notebook) if LAUNCH.search(cell.source)]
    assert launches
    for cell in launches:
        texts = [output.data["text/plain"] for output in cell.outputs if "data" in output]
        # A line's value is shown when it is the cell's last statement; a launch that is refused has none.
        is_value = LAUNCH.search(cell.source.splitlines()[0 if cell.source.startswith("%%") else -1])
        is_refused = any(output.get("ename", "RunFailed") != "RunFailed" for output in cell.outputs)
        assert is_refused or not is_value or any(text.startswith("Run: ") for text in texts), cell.source
