"""How it is said that an agent ended without a word of its own."""

from __future__ import annotations

import pytest

from ice_notebook.kernel.agents import how_it_ended


@pytest.mark.parametrize(
    ("code", "log", "said"),
    [
        (None, "", "the agent is gone"),
        (0, "", "the agent ended with exit code 0"),
        (1, "", "the agent ended with exit code 1"),
        (1, "Traceback\nImportError: no Queue\n\n", "the agent ended with exit code 1: ImportError: no Queue (agent.log)"),
        (-6, "terminate called\n", "the agent ended with signal 6: terminate called (agent.log)"),
        (-9, "a warning of torch\n", "the agent ended with signal 9"),
        (-15, "a warning of torch\n", "the agent ended with signal 15"),
        (70, "", "the agent ended with exit code 70, by a fault of ice_notebook (agent.log in the run folder has all of it)"),
        (
            70,
            "Traceback\nKeyError: 'x'\n",
            "the agent ended with exit code 70, by a fault of ice_notebook: KeyError: 'x' (agent.log in the run folder has all of it)",
        ),
    ],
)
def test_its_last_words_are_said_unless_it_was_killed(tmp_path, code, log, said):
    path = tmp_path / "agent.log"
    if log:
        path.write_text(log)
    assert how_it_ended(code, path) == said
