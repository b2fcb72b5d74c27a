"""Which runs keep their values: those that somebody can still reach but through the output history."""

from __future__ import annotations

import gc

import pytest
from histories import plan, succeeded

from ice_notebook.errors import ResultError
from ice_notebook.host import notebook
from ice_notebook.kernel import forgotten
from ice_notebook.kernel.forgotten import History
from ice_notebook.kernel.run import Run
from ice_notebook.runs.state import replay
from ice_notebook.runs.store import RunFolder
from ice_notebook.ui.widgets.run_panel import RunPanel
from ice_notebook.values import shared_values
from ice_notebook.values.shared_values import SharedValues


@pytest.fixture(autouse=True)
def variables(tmp_path, monkeypatch):
    """The notebook's variables."""
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(shared_values, "SHARED_MEMORY", tmp_path / "shm")
    found = {"_oh": {}}
    found["Out"] = found["_oh"]
    monkeypatch.setattr(notebook, "namespace", lambda: found)
    monkeypatch.setattr(notebook, "output_history", lambda: found["_oh"])
    monkeypatch.setattr(forgotten, "LARGE_BYTES", 1)
    return found


@pytest.fixture
def launch(tmp_path, variables):
    """Return `launch()`, which shows one more finished run with a panel, as a cell does, and returns its number in the history."""
    history = History()

    def begin() -> int:
        number = len(variables["_oh"]) + 1
        folder = RunFolder(tmp_path / str(number))
        folder.path.mkdir()
        run = Run(plan(1, folder=str(folder.path)), folder, shared=SharedValues.make(str(number)))
        run._state = replay(succeeded(["1"]).events)
        run.panel = RunPanel(run, cell_waits=True)
        run.subscribe(run.panel)
        run.end()
        variables["_oh"][number] = variables[f"_{number}"] = variables["_"] = run
        history.add(run)
        return number

    yield begin
    for run in variables["_oh"].values():
        run.panel.close()


def has_values(run: Run) -> bool:
    return run._shared.path.exists()


def test_runs_that_only_the_history_holds_give_up_their_values_but_the_newest(launch, variables):
    for _ in range(6):
        launch()
    assert [has_values(run) for run in variables["_oh"].values()] == [False, False, True, True, True, True]
    first = variables["_oh"][1]
    with pytest.raises(ResultError, match="only the notebook's output history held its run"):
        first.result()
    assert repr(first) == repr(variables["_oh"][6])
    assert not first._folder.is_locked()


def test_a_run_that_somebody_holds_keeps_its_values(launch, variables):
    def hold_one():
        mine = variables["_oh"][launch()]
        for _ in range(4):
            launch()
        return has_values(mine)

    variables["named"] = variables["_oh"][launch()]
    variables["several"] = [variables["_oh"][launch()]]
    variables["results"] = variables["_oh"][launch()].results
    local = hold_one()
    launch()
    held = [has_values(variables["_oh"][number]) for number in (1, 2, 3)]
    assert (local, held) == (True, [True] * 3)
    del variables["several"]
    gc.collect()
    for _ in range(forgotten.MANY_RUNS):
        launch()
    assert [has_values(variables["_oh"][number]) for number in (1, 2, 3)] == [True, False, True]


def test_outside_a_notebook_there_is_no_history(launch, variables, monkeypatch):
    monkeypatch.setattr(notebook, "output_history", lambda: None)
    for _ in range(6):
        launch()
    assert all(has_values(run) for run in variables["_oh"].values())
