"""The cell magic in a real kernel: what is launched, what is bound, how it is helped to be typed."""

from __future__ import annotations

import pytest
from support import Kernel, wait_until


def test_a_cell_that_ends_with_a_function_defines_it_and_launches_it(shared_kernel: Kernel):
    outcome = shared_kernel.run(
        "%%elastic_launch devices=cpu:0-1 -o run\n"
        "factor = 10\n"
        "def work(launcher):\n"
        "    print('on', launcher.rank)\n"
        "    return factor * launcher.rank"
    )
    assert not outcome.error
    assert outcome.value.splitlines()[1:] == ["rank 0: 0", "rank 1: 10"]
    assert shared_kernel.value("(_ is run, Out[max(Out)] is run, factor, work.__name__, dict(run.results))") == (
        True,
        True,
        10,
        "work",
        {0: 0, 1: 10},
    )
    assert shared_kernel.value("[run.output(rank) for rank in (0, 1)]") == ["on 0\n", "on 1\n"]


def test_a_function_that_mentions_the_launcher_and_has_none_finds_its_ranks_own(shared_kernel: Kernel):
    outcome = shared_kernel.run(
        "%%elastic_launch devices=cpu:0-1\ndef mentions():\n    return sum(launcher.progress(range(3))) + launcher.rank"
    )
    assert outcome.value.splitlines()[1:] == ["rank 0: 3", "rank 1: 4"], outcome.error
    own = shared_kernel.run(
        "launcher = 'mine'\nfrom ice_notebook import ElasticLauncher\n"
        "def has_one():\n    return launcher\ndict(ElasticLauncher('cpu:0')(has_one).results)\n"
    )
    assert own.value == "{0: 'mine'}", own.error
    shared_kernel.run("del launcher")


def test_another_cell_is_run_as_it_is_on_every_rank_and_nothing_it_assigns_comes_back(shared_kernel: Kernel):
    shared_kernel.run("base, own = 5, open('/dev/null')")
    outcome = shared_kernel.run(
        "%%elastic_launch devices=cpu:0-1\n"
        "own = launcher.rank\n"  # assigned before use: the notebook's open file is not sent
        "import asyncio\n"
        "await asyncio.sleep(0)\n"
        "made_here = !echo shell {base}\n"
        "(base + own, made_here)"
    )
    assert outcome.value.splitlines()[1:] == ["rank 0: (5, ['shell 5'])", "rank 1: (6, ['shell 5'])"], outcome.error
    assert shared_kernel.value("('made_here' in globals(), type(own).__name__)") == (False, "TextIOWrapper")


def test_arguments_are_expressions_over_the_notebook_and_another_function_can_be_named(shared_kernel: Kernel):
    shared_kernel.run("n = 3\nasync def power(x, *, exponent=1):\n    return x ** exponent")
    outcome = shared_kernel.run(
        "%%elastic_launch --devices cpu function=power args=(n + 1,) kwargs={'exponent': 2} -o run\n'set up'"
    )
    assert outcome.value.splitlines()[1:] == ["rank 0: 16"], outcome.error


def test_the_line_is_not_expanded_by_ipython_and_names_are_looked_up_by_us(shared_kernel: Kernel):
    shared_kernel.run("where = 'cpu:0'\nhome = 'x'")
    outcome = shared_kernel.run(
        "%%elastic_launch devices=where env=A=$home env=B={home * 2}\nimport os\nos.environ['A'], os.environ['B']"
    )
    assert outcome.value.splitlines()[1:] == ["rank 0: ('$home', 'xx')"], outcome.error


def test_a_background_cell_returns_at_once_and_the_run_goes_on(shared_kernel: Kernel, tmp_path):
    gate = tmp_path / "gate"
    outcome = shared_kernel.run(
        f"%%elastic_launch devices=cpu background -o later\nimport os, time\nwhile not os.path.exists({str(gate)!r}):\n    time.sleep(0.01)\n'through'"
    )
    assert not outcome.error
    assert shared_kernel.value("(later.done(), later.wait(0))") == (False, False)
    gate.touch()
    assert shared_kernel.value("later.result(), later.wait(), later.phase.value") == ("through", True, "succeeded")


def test_the_run_is_bound_before_anything_starts_even_when_it_fails(shared_kernel: Kernel):
    outcome = shared_kernel.run("%%elastic_launch devices=cpu -o failed\nprint('before')\nraise LookupError('gone')")
    assert outcome.error_name == "RunFailed"
    assert outcome.error_value == "rank 0: LookupError: gone (cell, line 3)"
    assert shared_kernel.value(
        "(failed.phase.value, failed.output(0).splitlines()[0], type(failed.exception().__cause__).__name__)"
    ) == (
        "failed",
        "before",
        "LookupError",
    )
    shown = [out for out in outcome.outputs if out["type"] == "display_data"]
    assert "ice-report" in shown[-1]["data"]["text/html"], "the report is displayed before the error is raised"


def test_help_is_made_from_the_table(shared_kernel: Kernel):
    reply = shared_kernel.client.inspect("%%elastic_launch", reply=True, timeout=30)
    assert "max_restarts=" in reply["content"]["data"]["text/plain"]
    assert "max_restarts=" in shared_kernel.run("%%elastic_launch --help").text


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("%%elastic_launch max", "max_restarts="),
        ("%%elastic_launch devices=cp", "cpu"),
        ("%%elastic_launch devices=cpu max", "max_restarts="),
    ],
)
def test_tab_completes_names_and_devices(shared_kernel: Kernel, typed: str, expected: str):
    reply = shared_kernel.client.complete(typed, len(typed), reply=True, timeout=30)["content"]
    assert expected in reply["matches"]
    assert typed[reply["cursor_start"] : reply["cursor_end"]] == expected[: reply["cursor_end"] - reply["cursor_start"]]


def test_completion_inside_the_cell_is_left_alone(shared_kernel: Kernel):
    text = "%%elastic_launch devices=cpu\nimport os\nos.pa"
    matches = shared_kernel.client.complete(text, len(text), reply=True, timeout=30)["content"]["matches"]
    assert any(match.endswith("path") for match in matches)


def test_an_error_of_ours_is_drawn_without_our_frames_and_fails_the_cell(shared_kernel: Kernel):
    outcome = shared_kernel.run("%%elastic_launch devcies=cpu\npass")
    assert outcome.error == "OptionError: 'devcies' is not an option. Did you mean 'devices'?"


def test_the_extension_can_be_unloaded_and_loaded_again(kernel: Kernel):
    kernel.run("%unload_ext ice_notebook")
    assert "not found" in kernel.run("%%elastic_launch\npass").text
    kernel.run("%load_ext ice_notebook")
    assert kernel.run("%%elastic_launch\n").error_name == "CellError"


def test_output_goes_to_the_panel_and_never_to_the_cells_own_stdout(shared_kernel: Kernel):
    outcome = shared_kernel.run("%%elastic_launch devices=cpu\nprint('only in the panel')")
    assert [out for out in outcome.outputs if out["type"] == "stream"] == []


def test_text_is_printed_by_the_cell_itself_when_there_is_no_widget(shared_kernel: Kernel):
    outcome = shared_kernel.run("%%elastic_launch devices=cpu ui=text\nprint('a line')")
    assert "[0] a line" in "".join(out["text"] for out in outcome.outputs if out["type"] == "stream")


def test_a_run_that_is_still_going_has_a_report_that_does_not_race(shared_kernel: Kernel):
    shared_kernel.run("%%elastic_launch devices=cpu background -o going\nimport time\ntime.sleep(600)")
    shown = shared_kernel.run("going").value
    assert "cpu:0" in shown
    shared_kernel.run("going.kill()")
    assert wait_until(lambda: shared_kernel.value("going.done()"))


def test_a_run_in_another_cell_shows_its_panel_and_the_report(shared_kernel):
    launched = shared_kernel.run("%%elastic_launch devices=cpu dist_init=no -o run\ndef work():\n    return 1")
    shown = [
        [out["data"]["text/plain"] for out in shared_kernel.run(text).outputs] for text in ("run", "run", "display(run); run", "1")
    ]
    report = "Run: succeeded · 1 rank · cpu:0 · restarts 0/0\nrank 0: 1"
    panel = "RunPanel(work(), 1 rank)"
    assert [out["data"]["text/plain"] for out in launched.outputs] == [panel, report]
    assert shown == [[panel, report], [panel, report], [panel, report, report], ["1"]]
    ids = shared_kernel.run("run").outputs[0]["data"]["application/vnd.jupyter.widget-view+json"]["model_id"]
    assert ids == launched.outputs[0]["data"]["application/vnd.jupyter.widget-view+json"]["model_id"]
