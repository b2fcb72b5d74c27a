"""The generated pages are what the code says today."""

import importlib.util
from pathlib import Path

import pytest

from ice_notebook import errors
from ice_notebook.options.launch_options import LATER, OF_TORCHRUN, TABLE

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["options", "errors"])
def test_the_committed_page_is_what_the_code_says_today(generate, page):
    committed = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    assert committed == getattr(generate, f"{page}_page")(), "run: python docs/generate.py"


def test_every_option_and_every_later_one_has_its_row(generate):
    rows = [line for line in generate.options_page().splitlines() if line.startswith("| `")]
    names = {row.split("`")[1].lstrip("-") for row in rows}
    assert {option.name for option in TABLE} | set(LATER) | set(OF_TORCHRUN) <= names


def test_a_table_row_has_as_many_cells_as_its_head(generate):
    for block in generate.options_page().split("\n\n"):
        rows = [line.replace("\\|", "") for line in block.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1, rows


def test_every_exception_has_its_section(generate):
    page = generate.errors_page()
    ours = [name for name, item in vars(errors).items() if isinstance(item, type) and issubclass(item, errors.IceNotebookError)]
    assert all(f"## `{name}`" in page for name in ours)
    assert "- {name}={found} is refused: {why}\n" in page
