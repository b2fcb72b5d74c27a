"""The magic's manners on the environment's IPython and on IPython 8, which counts the running cell otherwise."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import overlays
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from support import HANG_S, Kernel, wait_until

ROOT = Path(__file__).parents[2]
LAUNCH = "%%elastic_launch devices=cpu"


@pytest.fixture(scope="module", params=["newest", "8"])
def kernel_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """A kernel with one of the IPythons."""
    first = [] if request.param == "newest" else [overlays.packages("ipython-8")]
    path = os.pathsep.join(map(str, [*first, ROOT]))
    made = Kernel(forks=True, env={**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))})
    version = made.value("__import__('IPython').__version__")
    wanted = importlib.metadata.version("ipython") if request.param == "newest" else request.param
    assert f"{version}.".startswith(f"{wanted}."), version
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


def test_an_error_names_the_cell_and_the_line_that_a_person_sees(kernel_of: Kernel):
    while kernel_of.run("pass").number < 6:
        pass
    outcome = kernel_of.run(f"{LAUNCH}\nloss = 1.5\nraise ValueError(loss)")
    assert outcome.number == 7
    assert "Cell In[7], line 3" in outcome.error
    assert "raise ValueError(loss)" in outcome.error
    # A plain cell says the same of itself.
    assert "Cell In[8], line 3" in kernel_of.run("loss = 1.5\n\nraise ValueError(loss)").error


def test_a_rank_knows_the_source_and_the_value_is_that_of_any_cell(kernel_of: Kernel):
    outcome = kernel_of.run(f"{LAUNCH}\ndef work(launcher):\n    import inspect\n    return inspect.getsource(work)")
    assert outcome.error == ""
    source = "def work(launcher):\n    import inspect\n    return inspect.getsource(work)"
    assert kernel_of.value("_.results[0].rstrip()") == source
    assert kernel_of.value(f"Out[{outcome.number}] is Out[max(n for n in Out if n <= {outcome.number})]") is True
    assert kernel_of.value(f"type(Out[{outcome.number}]).__name__") == "Run"


def test_a_semicolon_silences_the_value_and_capture_takes_all(kernel_of: Kernel):
    silenced = kernel_of.run(f"{LAUNCH} -o run\n1 + launcher.rank;")
    assert (silenced.error, silenced.value) == ("", "")
    captured = kernel_of.run(f"%%capture shown\n{LAUNCH} -o run\n2 + launcher.rank")
    assert (captured.error, captured.outputs) == ("", [])
    assert kernel_of.value("(run.results[0], ['ice-report' in str(out.data.get('text/html')) for out in shown.outputs][-1])") == (
        2,
        True,
    )


def test_help_is_what_a_question_mark_shows(kernel_of: Kernel):
    for reply in replies(kernel_of, "%%elastic_launch?", "%elastic_launch?"):
        assert "max_restarts=" in reply["payload"][0]["data"]["text/plain"]


def test_completion_inside_the_cell_is_what_it_is_without_the_extension(kernel_of: Kernel):
    texts = [f"{LAUNCH}\nimport os\nos.pa", f"{LAUNCH}\nde", "os.pa", "%%ti", "devi"]
    kernel_of.run("import os\ndevices_of_mine = 1")
    ours = [matches(kernel_of, text) for text in texts]
    kernel_of.run("%unload_ext ice_notebook")
    try:
        assert ours == [matches(kernel_of, text) for text in texts]
    finally:
        kernel_of.run("%load_ext ice_notebook")
    assert "max_restarts=" in matches(kernel_of, "%%elastic_launch max")


def test_a_misspelt_option_is_named_and_ends_what_was_to_follow(kernel_of: Kernel):
    kernel_of.run("get_ipython().kernel.stop_on_error_timeout = 0.5")  # how long the kernel waits for what is queued
    wrong, after = replies(kernel_of, "%%elastic_launch devcies=cpu\npass", "came_here = True")
    assert (wrong["status"], wrong["ename"]) == ("error", "OptionError")
    assert wrong["evalue"] == "'devcies' is not an option. Did you mean 'devices'?"
    assert after["status"] == "aborted"
    wait_until(lambda: kernel_of.run("1 + 1").value == "2")
    assert kernel_of.value("'came_here' in globals()") is False


def test_a_misspelt_option_fails_a_notebook_that_is_executed():
    cells = ["%load_ext ice_notebook", "%%elastic_launch devcies=cpu\npass", "came_here = True"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    with pytest.raises(CellExecutionError, match="Did you mean 'devices'"):
        NotebookClient(notebook, kernel_name="python3").execute()
    assert notebook.cells[2].execution_count is None
