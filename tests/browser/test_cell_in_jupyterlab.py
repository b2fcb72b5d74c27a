"""`%%elastic_launch` in JupyterLab, as a person meets it: real ranks, a real page; then the notebook as it is found later, elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from harness import wait_until
from nbconvert import HTMLExporter

LOAD = "%load_ext ice_notebook"
LINES = 500_000  # of each of two ranks
RETURNS = f"""%%elastic_launch devices=cpu:0-1 -o good
def evaluate(launcher):
    import sys
    for _ in range({LINES} // 1000):
        sys.stdout.write("a line of a long log\\n" * 1000)
    print("evaluating on", launcher.assigned_device)
    return {{"accuracy": 0.5 + launcher.rank / 10}}
"""
FAILS = """%%elastic_launch devices=cpu:0-1 -o bad
def train(launcher):
    loss = 1.5
    if launcher.rank == 1:
        raise ValueError(f"bad loss {loss}")
    return loss
"""
LAUNCH = 60.0  # seconds until a run says something: its ranks import torch
SAVED_BYTES, REPORT_BYTES = 200_000, 100_000
BROKEN = re.compile("Error displaying widget|Loading widget")


@pytest.fixture(scope="module")
def told(lab, browser):
    """A page in which one run has printed a million lines and succeeded, and another has failed."""
    page = browser.open(lab, lab.notebook([LOAD, RETURNS, FAILS], "told.ipynb"))
    page.run_all(LAUNCH)
    yield page
    if not page.page.is_closed():
        page.close()
        lab.end_kernels(page.name)


@pytest.fixture(scope="module")
def saved(lab, told):
    """The notebook as JupyterLab saved it. The page is closed, its kernel has ended."""
    told.save()
    told.close()
    lab.end_kernels(told.name)
    return lab.read(told.name)


def reports(notebook):
    """Return the HTML of a notebook's reports."""
    shown = [output.data.get("text/html", "") for cell in notebook.cells for output in cell.outputs if "data" in output]
    return [html for html in shown if "ice-report" in html]


def test_values_and_output_are_shown_and_the_report_hides_while_the_panel_lives(told):
    panel = told.panel(1)
    panel.wait_phase("succeeded")
    panel.wait_text("evaluating on cpu")
    panel.tab("Results").click()
    panel.wait_text("{'accuracy': 0.6}")
    for i in (1, 2):
        assert told.panel(i).is_live
        assert told.output(i).locator(".ice-report").count() == 1
        assert not told.output(i).locator(".ice-report").is_visible()
    assert told.value("good.results[1]") == {"accuracy": 0.6}
    assert told.value("[good.output(rank).count('\\n') for rank in (0, 1)]") == [LINES + 1, LINES + 1]


def test_a_failure_shows_the_cells_own_lines(told):
    told.panel(2).wait_phase("failed")
    told.panel(2).wait_text("ValueError: bad loss 1.5")
    assert 'raise ValueError(f"bad loss {loss}")' in told.panel(2).root.inner_text()
    assert "RunFailed: rank 1: ValueError: bad loss 1.5" in told.output(2).inner_text()
    assert (told.errors, told.foreign) == ([], [])


def test_a_million_lines_make_no_big_notebook(lab, saved):
    assert (lab.root / "told.ipynb").stat().st_size < SAVED_BYTES
    assert len(reports(saved)) == 2
    assert max(len(html.encode()) for html in reports(saved)) <= REPORT_BYTES
    assert "widgets" not in saved.metadata
    assert [output.text for cell in saved.cells for output in cell.outputs if output.output_type == "stream"] == []


@pytest.mark.parametrize("app", ["lab", "notebook7"])
@pytest.mark.parametrize("is_trusted", [True, False], ids=["same person", "somebody else"])
def test_a_notebook_that_is_opened_again_without_its_kernel_shows_the_report(saved, open_notebook, server_of, app, is_trusted):
    server = server_of(app)
    copy = nbformat.from_dict({**saved, "metadata": {**saved.metadata, "copied": f"{app} {is_trusted}"}})
    name = f"copied-{is_trusted}.ipynb"
    nbformat.write(copy, server.root / name)
    if is_trusted:  # trust goes by content: what the server has not signed is somebody else's
        server.sign(copy)
    page = open_notebook(name=name, app=app)
    trusted = "() => window.jupyterapp.shell.currentWidget.content.widgets[1].model.trusted"
    assert page.page.evaluate(trusted) is is_trusted
    page.wait_output(1, "{'accuracy': 0.6}")
    page.wait_output(2, "ValueError: bad loss 1.5")
    for i in (1, 2):
        assert page.output(i).locator(".ice-report").is_visible()
        wait_until(lambda i=i: not any(BROKEN.search(text) for text in page.outputs(i)), page=page)


@pytest.fixture(scope="module")
def executed(lab, tmp_path_factory):
    """The same notebook as `nbconvert --execute` leaves it, with the state of its widgets."""
    folder = tmp_path_factory.mktemp("executed")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in (LOAD, RETURNS, FAILS)])
    nbformat.write(notebook, folder / "given.ipynb")
    command = ["nbconvert", "--execute", "--allow-errors", "--to", "notebook", "--output", "made.ipynb", "given.ipynb"]
    done = subprocess.run([sys.executable, "-m", *command], cwd=folder, env=lab.variables(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "made.ipynb"


@pytest.mark.parametrize("has_state", [True, False], ids=["state stored", "no state"])
def test_a_page_made_by_nbconvert_shows_the_report_offline(executed, browser, tmp_path, has_state):
    assert executed.stat().st_size < SAVED_BYTES
    notebook = nbformat.read(executed, as_version=4)
    assert "widgets" in notebook.metadata
    if not has_state:
        del notebook.metadata["widgets"]
    target = tmp_path / "page.html"
    target.write_text(HTMLExporter().from_notebook_node(notebook)[0])
    page = browser.blank()
    # The page asks for scripts of other hosts, which is nbconvert's way. Offline it gets none.
    page.route(re.compile("^(?!file:)"), lambda route: route.abort())
    page.goto(Path(target).as_uri())
    found = page.locator(".ice-report")
    found.first.wait_for()
    assert [report.is_visible() for report in found.all()] == [True, True]
    assert "{'accuracy': 0.6}" in found.nth(0).inner_text()
    assert "ValueError: bad loss 1.5" in found.nth(1).inner_text()
    assert not BROKEN.search(page.locator("body").inner_text())
    page.close()
