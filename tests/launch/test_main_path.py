"""The main path in a kernel, with the versions that are installed here. `tests/versions` has it run with the oldest and the newest as well."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import IPython
import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from support import HANG_S, Kernel, wait_until

LAUNCH = "%%elastic_launch devices=cpu"


@pytest.fixture(scope="module")
def ipython(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    made = Kernel(forks=True, env={**os.environ, "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))})
    assert made.value("__import__('IPython').__version__") == importlib.metadata.version("ipython")
    yield made
    made.close()


def matches(kernel: Kernel, text: str) -> list[str]:
    return kernel.client.complete(text, len(text), reply=True, timeout=30)["content"]["matches"]


def replies(kernel: Kernel, *codes: str) -> list[dict[str, Any]]:
    """Queue cells, and return what the kernel replies to each."""
    requests = [kernel.client.execute(code, allow_stdin=False) for code in codes]
    found: dict[str, dict[str, Any]] = {}
    while not found.keys() >= set(requests):
        message = kernel.client.get_shell_msg(timeout=HANG_S)
        found[message["parent_header"]["msg_id"]] = message["content"]
    return [found[request] for request in requests]


def test_an_error_names_the_cell_and_the_line_that_a_person_sees(ipython: Kernel):
    while ipython.run("pass").number < 6:
        pass
    outcome = ipython.run(f"{LAUNCH}\nloss = 1.5\nraise ValueError(loss)")
    assert outcome.number == 7
    assert "Cell In[7], line 3" in outcome.error
    assert "raise ValueError(loss)" in outcome.error
    if IPython.version_info >= (8,):  # a plain cell says the same of itself
        assert "Cell In[8], line 3" in ipython.run("loss = 1.5\n\nraise ValueError(loss)").error


def test_a_failure_in_a_function_of_another_cell_names_that_cell(ipython: Kernel):
    plain = ipython.run("def scale(x):\n    return x / 0\n").number
    ours = ipython.run(f"{LAUNCH} -o first\ndef use(launcher):\n    return scale(1)")
    assert f"Cell In[{plain}], line 2, in scale" in ours.error
    assert f"Cell In[{ours.number}], line 3, in use" in ours.error
    again = ipython.run(f"{LAUNCH}\nuse(launcher)")
    assert f"Cell In[{plain}], line 2, in scale" in again.error
    assert f"Cell In[{ours.number}], line 3, in use" in again.error


def test_a_rank_knows_the_source_and_the_value_is_that_of_any_cell(ipython: Kernel):
    outcome = ipython.run(f"{LAUNCH}\ndef work(launcher):\n    import inspect\n    return inspect.getsource(work)")
    assert outcome.error == ""
    source = "def work(launcher):\n    import inspect\n    return inspect.getsource(work)"
    assert ipython.value("_.results[0].rstrip()") == source
    assert ipython.value(f"Out[{outcome.number}] is Out[max(n for n in Out if n <= {outcome.number})]") is True
    assert ipython.value(f"type(Out[{outcome.number}]).__name__") == "Run"


def test_what_a_cell_has_made_travels_and_values_come_back(ipython: Kernel):
    cell = """
import torch
from dataclasses import dataclass

@dataclass
class Batch:
    size: int
    weights: torch.Tensor

batch = Batch(3, torch.ones(3))
"""
    assert ipython.run(cell).error == ""
    launch = f"{LAUNCH}:0-1 -o run\ndef work(launcher):\n    return Batch(batch.size + launcher.rank, batch.weights * 2)"
    assert ipython.run(launch).error == ""
    found = "[(type(b) is Batch, b.size, b.weights.tolist()) for b in run.results.values()]"
    assert ipython.value(found) == [(True, 3, [2.0, 2.0, 2.0]), (True, 4, [2.0, 2.0, 2.0])]


def test_a_failed_attempt_is_followed_by_another(ipython: Kernel):
    launch = f"{LAUNCH} max_restarts=1 -o run\nif launcher.restart_count == 0: raise ValueError('once more')\n'done'"
    assert ipython.run(launch).error == ""
    assert ipython.value("(run.restarts, run.results[0])") == (1, "done")


def test_an_interrupt_stops_the_run_and_leaves_the_notebook_as_it_was(ipython: Kernel, tmp_path: Path):
    here = tmp_path / "here"
    cell = f"{LAUNCH} -o run\nimport pathlib, time\npathlib.Path({str(here)!r}).touch()\ntime.sleep(60)"
    ipython.run("kept = 1")
    request = ipython.start(cell)
    wait_until(here.exists)
    ipython.interrupt()
    assert "KeyboardInterrupt: the run was stopped" in ipython.finish(request).error
    assert ipython.value("(kept, run.phase.value)") == (1, "stopped")


def test_ranks_stand_by_for_a_launch(ipython: Kernel):
    try:
        ipython.run("def work(launcher): return launcher.rank\n\n%elastic_standby 2")
        wait_until(
            lambda: "2 ranks stand by: ready" in ipython.run("%elastic_standby").text, 4 * HANG_S
        )  # they yield to whatever else runs
        assert ipython.run("%elastic_launch devices=cpu:0-1 -o run work").error == ""
        assert ipython.value("([attempt.start for attempt in run.state.attempts], dict(run.results))") == (
            ["standby"],
            {0: 0, 1: 1},
        )
    finally:
        ipython.run("%elastic_standby off")


def test_the_panel_can_be_made_or_lines_are_shown(ipython: Kernel):
    outcome = ipython.run(f"{LAUNCH} ui=widget\nprint('a line of the rank')")
    assert outcome.error == ""
    assert any("application/vnd.jupyter.widget-view+json" in out.get("data", {}) for out in outcome.outputs)
    assert "[0] a line of the rank" not in outcome.text
    outcome = ipython.run(f"{LAUNCH} ui=text\nprint('a line of the rank')")
    assert outcome.error == ""
    assert "[0] a line of the rank" in outcome.text


def test_a_semicolon_silences_the_value_and_capture_takes_all(ipython: Kernel):
    silenced = ipython.run(f"{LAUNCH} -o run\n1 + launcher.rank;")
    assert (silenced.error, silenced.value) == ("", "")
    captured = ipython.run(f"%%capture shown\n{LAUNCH} -o run\n2 + launcher.rank")
    assert (captured.error, captured.outputs) == ("", [])
    assert ipython.value("(run.results[0], ['ice-report' in str(out.data.get('text/html')) for out in shown.outputs][-1])") == (
        2,
        True,
    )


def test_help_is_what_a_question_mark_shows(ipython: Kernel):
    for reply in replies(ipython, "%%elastic_launch?", "%elastic_launch?"):
        assert "max_restarts=" in reply["payload"][0]["data"]["text/plain"]


def test_completion_inside_the_cell_is_what_it_is_without_the_extension(ipython: Kernel):
    texts = [f"{LAUNCH}\nimport os\nos.pa", f"{LAUNCH}\nde", "os.pa", "%%ti", "devi"]
    ipython.run("import os\ndevices_of_mine = 1")
    ours = [matches(ipython, text) for text in texts]
    ipython.run("%unload_ext ice_notebook")
    try:
        assert ours == [matches(ipython, text) for text in texts]
    finally:
        ipython.run("%load_ext ice_notebook")
    assert "max_restarts=" in matches(ipython, "%%elastic_launch max")


def test_a_misspelt_option_is_named_and_ends_what_was_to_follow(ipython: Kernel):
    ipython.run("get_ipython().kernel.stop_on_error_timeout = 0.5")  # how long the kernel waits for what is queued
    wrong, after = replies(ipython, "%%elastic_launch devcies=cpu\npass", "came_here = True")
    assert (wrong["status"], wrong["ename"]) == ("error", "OptionError")
    assert wrong["evalue"] == "'devcies' is not an option. Did you mean 'devices'?"
    assert after["status"] == "aborted"
    wait_until(lambda: ipython.run("1 + 1").value == "2")
    assert ipython.value("'came_here' in globals()") is False


def test_a_misspelt_option_fails_a_notebook_that_is_executed():
    cells = ["%load_ext ice_notebook", "%%elastic_launch devcies=cpu\npass", "came_here = True"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    with pytest.raises(CellExecutionError, match="Did you mean 'devices'"):
        NotebookClient(notebook, kernel_name="python3").execute()
    assert notebook.cells[2].execution_count is None
