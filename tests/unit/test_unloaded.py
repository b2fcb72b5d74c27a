"""What could not be loaded in a rank is named by the user's variable."""

from __future__ import annotations

import pytest
from arriving import in_fresh_process

from ice_notebook.errors import LoadError
from ice_notebook.tasks.cell import BodyTask, FunctionTask
from ice_notebook.values.pickles import DeviceTensors, dump, load, name_of_unloaded

BROKEN = """
import sys
class Broken:
    def __init__(self):
        self.inner = 1
    def __setstate__(self, state):
        raise ValueError("no. ")
class Lost:
    def __reduce__(self):
        return getattr, (sys, "nothing_there")
other = [1, 2]
broken, held, lost = Broken(), {"a": [Broken()]}, Lost()
"""


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        ("def f():\n    return other, broken", "broken"),
        ("def f():\n    return broken, other", "broken"),
        ("def f():\n    return helper()\ndef helper():\n    return other, held", "held"),
        ("def f():\n    return lost", "lost"),
        ("class A:\n    def get(self):\n        return lost\ndef f():\n    return A().get()", "lost"),
    ],
)
def test_the_variable_of_a_function_is_named(notebook, tmp_path, cell, name):
    notebook.cell(BROKEN)
    notebook.cell(cell)
    dump(
        FunctionTask(notebook.variables["f"]), tmp_path / "payload", devices=DeviceTensors.TO_HOST, main_globals=notebook.variables
    )
    with in_fresh_process():
        with pytest.raises((ValueError, AttributeError)):
            load(tmp_path / "payload")
        assert name_of_unloaded(tmp_path / "payload") == name


def test_the_variable_of_a_body_is_named(notebook, tmp_path):
    notebook.cell(BROKEN)
    names = {name: notebook.variables[name] for name in ("other", "held")}
    task = BodyTask("other\nheld", "Cell In[1]", 0, names)
    dump(task, tmp_path / "payload", devices=DeviceTensors.TO_HOST, main_globals=notebook.variables)
    with in_fresh_process():
        assert name_of_unloaded(tmp_path / "payload") == "held"


def test_what_can_be_loaded_has_no_name(tmp_path):
    dump([1], tmp_path / "payload", devices=DeviceTensors.TO_HOST)
    assert name_of_unloaded(tmp_path / "payload") is None


def test_the_sentence_says_what_where_and_why():
    assert str(LoadError.of("fib", ValueError("no. "))) == (
        "`fib` could not be loaded in the ranks: ValueError: no. Create `fib` in the function, or send what it is made from."
    )
    assert str(LoadError.of(None, ValueError())).startswith(
        "What the function needs could not be loaded in the ranks: ValueError. Create it in"
    )
