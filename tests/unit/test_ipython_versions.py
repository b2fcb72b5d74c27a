"""What the magics need of IPython, in the form of IPython 7; `tests/versions` has it run on the real one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ice_notebook.host import ipython_versions, notebook
from ice_notebook.host.ipython_versions import _ends_in_semicolon, _matcher_of_ipython_7, _silenced_here


@pytest.mark.parametrize(
    ("code", "is_silenced"),
    [
        ("", False),
        ("1 + 1", False),
        ("1 + 1;", True),
        ("1 + 1;  # shown?\n\n", True),
        ("'a;'", False),
        ("# a;", False),
        ("def f():\n    return 1;\n", True),
        ("train devices=cpu:0-1;", True),
        ("text = '''\n;", False),  # not Python: what can be read of it does not end so
    ],
)
def test_a_semicolon_at_the_end_silences(code, is_silenced):
    assert _ends_in_semicolon(code) is is_silenced


def test_a_silenced_magic_runs_and_gives_nothing():
    @_silenced_here
    def magic(_self, line, cell=None):
        ran.append((line, cell))
        return 7

    ran = []
    assert [magic(None, "f"), magic(None, "f;"), magic(None, "x;", "1"), magic(None, "", "1;")] == [7, None, 7, None]
    assert ran == [("f", None), ("f;", None), ("x;", "1"), ("", "1;")]


def test_matches_of_ipython_7_replace_the_last_word_alone():
    """IPython 7 divides at commas and colons, and gives the matcher what stands behind them."""
    completer = SimpleNamespace(text_until_cursor="%%elastic_launch devices=cpu:0,c", custom_matchers=[])
    asked = []

    def complete(typed, *, is_first_line):
        asked.append((typed, is_first_line))
        return ("cpu:0,c", ["cpu:0,cpu:1", "cuda:0"]) if typed.startswith("%%elastic_launch ") else None

    match = _matcher_of_ipython_7(SimpleNamespace(Completer=completer), complete)
    assert match("c") == ["cpu:1"]
    completer.text_until_cursor = "os.pa"
    assert match("os.pa") == []
    assert asked == [("%%elastic_launch devices=cpu:0,c", True), ("os.pa", True)]


def test_a_completer_is_added_once_and_taken_back():
    shell = SimpleNamespace(Completer=SimpleNamespace(custom_matchers=["another's"]))
    for _ in range(2):
        ipython_versions.add_completer(shell, lambda _typed, *, is_first_line: None)
    assert len(shell.Completer.custom_matchers) == 2
    ipython_versions.remove_completer(shell)
    assert shell.Completer.custom_matchers == ["another's"]


@pytest.fixture
def ipython_7(monkeypatch, tmp_path):
    """A shell that does not know which cell a file name stands for."""
    codes = ["", "a = 1", "def f():\n    return a", "f()", "def f():\n    return a"]
    compiler = SimpleNamespace(cache=lambda source, number, raw_code: f"/tmp/ipykernel_1/{number}.py")
    shell = SimpleNamespace(
        compile=compiler,
        displayhook=SimpleNamespace(prompt_count=7),
        history_manager=SimpleNamespace(input_hist_parsed=codes),
    )
    monkeypatch.setattr(notebook, "current_shell", lambda: shell)
    monkeypatch.setattr(
        "linecache.getlines", lambda name: ["def f():\n", "    return a\n"] if name == "/tmp/ipykernel_1/f.py" else []
    )
    notebook._cells_named_here.cache_clear()
    yield shell
    notebook._cells_named_here.cache_clear()


def test_a_cell_of_ipython_7_is_found_by_its_code(ipython_7):
    assert notebook.cell_label("/tmp/ipykernel_1/f.py") == "Cell In[4]"  # the newest with this code, as IPython 8 says it
    assert notebook.cell_label("/tmp/ipykernel_1/gone.py") == "/tmp/ipykernel_1/gone.py"
    assert notebook.cell_label("/usr/lib/python3/os.py") == "/usr/lib/python3/os.py"


def test_a_cell_of_ours_is_known_by_the_name_that_it_was_given(ipython_7):
    assert notebook.name_cell("\nwork()", "%%elastic_launch\nwork()") == "/tmp/ipykernel_1/7.py"
    assert notebook.running_cell() == "Cell In[7]"
    assert notebook.cell_label("/tmp/ipykernel_1/7.py") == "Cell In[7]"
