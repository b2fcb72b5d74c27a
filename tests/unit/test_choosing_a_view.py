"""Which view a run gets: the panel where a page can draw it, lines or nothing with a word about it elsewhere."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from ice_notebook.errors import OptionError
from ice_notebook.host import notebook
from ice_notebook.ui import watching
from ice_notebook.ui.watching import Ui, choose_ui
from ice_notebook.ui.widgets import kernel


@pytest.fixture
def page(monkeypatch):
    """Return `page(ipywidgets, jupyterlab_widgets)`: a notebook with these versions."""
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)

    def open_page(ipywidgets: str, jupyterlab_widgets: str) -> None:
        found = {"ipywidgets": ipywidgets, "jupyterlab_widgets": jupyterlab_widgets}
        monkeypatch.setattr(kernel, "_version", found.__getitem__)
        monkeypatch.setattr(notebook, "current_shell", lambda: SimpleNamespace(kernel=object()))

    return open_page


@pytest.mark.parametrize(("kernels", "pages"), [("8.1.9", "3.0.17"), ("7.7.1", "1.1.11"), ("7.7.1", ""), ("", "")])
def test_a_notebook_shows_the_panel(page, kernels, pages):
    page(kernels, pages)
    assert choose_ui("auto", waits=True) == Ui("widget")


def test_without_a_page_there_are_lines(monkeypatch):
    monkeypatch.setattr(notebook, "current_shell", lambda: None)
    assert choose_ui("auto", waits=True) == choose_ui("auto", waits=False) == Ui("text")
    with pytest.raises(OptionError, match="there is no notebook page here"):
        choose_ui("widget", waits=True)


def test_widgets_of_another_version_than_the_pages_are_replaced_by_lines_which_say_so(page):
    page("7.7.1", "3.0.17")
    why = "this kernel has ipywidgets 7.7.1, and JupyterLab has jupyterlab_widgets 3.0.17, which is for ipywidgets 8"
    note = f"run: shown as lines, because {why}. ui=widget shows the panel all the same."
    assert choose_ui("auto", waits=True) == Ui("text", note)
    # Lines from behind would land in whichever cell is newest.
    assert choose_ui("auto", waits=False) == Ui("none", note.replace("shown as lines", "not shown"))
    assert choose_ui("widget", waits=True) == Ui("widget", is_asked_for=True)


def test_colabs_page_draws_widgets_of_any_version(page, monkeypatch):
    page("7.7.1", "3.0.16")
    monkeypatch.setitem(sys.modules, "google.colab.output", SimpleNamespace())
    assert choose_ui("auto", waits=True) == Ui("widget")


def test_a_notebook_that_kaggle_runs_as_a_whole_has_lines(page, monkeypatch):
    page("8.1.5", "3.0.17")
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert choose_ui("auto", waits=True) == Ui("widget")
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert choose_ui("auto", waits=True).kind == "text"
    assert "Kaggle runs this notebook as a whole" in choose_ui("auto", waits=True).note


def test_lines_take_the_place_of_a_panel_that_cannot_be_imported(page, monkeypatch, capsys):
    page("8.1.9", "3.0.17")
    monkeypatch.setitem(sys.modules, "ice_notebook.ui.widgets.run_panel", None)
    run = SimpleNamespace(subscribe=lambda view: None)
    assert watching.open_view(run, choose_ui("auto", waits=False), waits=False) is None
    assert "run: not shown, because the packages for widgets cannot be imported (" in capsys.readouterr().out
    with pytest.raises(ImportError):
        watching.open_view(run, choose_ui("widget", waits=True), waits=True)
