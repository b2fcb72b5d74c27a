"""`%%elastic_launch` in JupyterLab, as a person meets it: real ranks, a real page."""

from __future__ import annotations

import re

import nbformat
import pytest

pytestmark = pytest.mark.browser

LOAD = "%load_ext ice_notebook"
STEPS = """%%elastic_launch devices=cpu:0-1 -o run
def train(launcher):
    import time
    for step in range(10_000):
        print("step", step)
        time.sleep(0.05)
"""
FAILS = """%%elastic_launch devices=cpu:0-1 -o bad
def train(launcher):
    loss = 1.5
    if launcher.rank == 1:
        raise ValueError(f"bad loss {loss}")
    return loss
"""
RETURNS = """%%elastic_launch devices=cpu:0-1 -o good
def evaluate(launcher):
    print("evaluating on", launcher.assigned_device)
    return {"accuracy": 0.5 + launcher.rank / 10}
"""
STATE = "print(run.phase.value, [len(run.output(rank)) > 0 for rank in (0, 1)])"
WORD = 30.0  # seconds for a panel to say something: two ranks import torch meanwhile


def wait_chip(page, i, word):
    page.output(i).locator(".ice-chip", has_text=re.compile(f"^{word}$")).wait_for(timeout=WORD * 1000)


def test_a_click_on_stop_ends_a_cell_that_blocks_and_leaves_the_kernel_fine(open_notebook):
    page = open_notebook(LOAD, STEPS, STATE)
    page.run_cell(0)
    page.run_cell(1, wait=False)
    page.wait_output(1, "step 5", timeout_s=WORD)
    assert page.is_running(1)
    page.click("Stop", 1)
    wait_chip(page, 1, "stopped")
    page.wait_idle()
    assert "KeyboardInterrupt: the run was stopped" in page.output(1).inner_text()
    page.run_cell(2)
    page.wait_output(2, "stopped [True, True]")


def test_the_notebooks_interrupt_stops_the_run(open_notebook):
    page = open_notebook(LOAD, STEPS, STATE)
    page.run_cell(0)
    page.run_cell(1, wait=False)
    page.wait_output(1, "step 5", timeout_s=WORD)
    page.interrupt()
    wait_chip(page, 1, "stopped")
    page.wait_idle()
    page.run_cell(2)
    page.wait_output(2, "stopped [True, True]")


def test_values_and_output_are_shown_and_the_report_hides_while_the_panel_lives(open_notebook):
    page = open_notebook(LOAD, RETURNS, "good.results[1]")
    page.run_cell(0)
    page.run_cell(1)
    wait_chip(page, 1, "succeeded")
    page.wait_output(1, "evaluating on cpu")
    page.output(1).get_by_role("tab", name=re.compile("Results")).click()
    page.wait_output(1, "{'accuracy': 0.6}")
    assert page.output(1).locator(".ice-report").count() == 1
    assert not page.output(1).locator(".ice-report").first.is_visible()
    page.run_cell(2)
    page.wait_output(2, "{'accuracy': 0.6}")


def test_a_failure_shows_the_cells_own_lines(open_notebook):
    page = open_notebook(LOAD, FAILS)
    page.run_cell(0)
    page.run_cell(1)
    wait_chip(page, 1, "failed")
    page.wait_output(1, "ValueError: bad loss 1.5")
    text = page.output(1).inner_text()
    assert 'raise ValueError(f"bad loss {loss}")' in text
    assert "RunFailed: rank 1: ValueError: bad loss 1.5" in text


@pytest.mark.parametrize("is_trusted", [True, False], ids=["same person", "somebody else"])
def test_a_notebook_that_is_opened_again_without_its_kernel_shows_the_report(lab, open_notebook, is_trusted):
    page = open_notebook(LOAD, RETURNS, FAILS)
    for i in range(3):
        page.run_cell(i)
    page.save()
    page.close()
    lab.end_kernels()
    name = page.name
    if not is_trusted:
        # Trust goes by content: what this server has not signed is somebody else's.
        notebook = lab.read(name)
        notebook.metadata["copied"] = True
        name = f"copied-{name}"
        nbformat.write(notebook, lab.root / name)
    again = open_notebook(name=name)
    again.wait_output(1, "{'accuracy': 0.6}")
    again.wait_output(2, "ValueError: bad loss 1.5")
    assert "Error displaying widget" not in again.output(1).inner_text()
