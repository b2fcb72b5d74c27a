"""The launcher as code on a rank, or beside one, holds it."""

from __future__ import annotations

import pytest

from ice_notebook import ElasticLauncher, get_current_launcher
from ice_notebook.errors import LauncherValueError


@pytest.mark.parametrize("launcher", [get_current_launcher(), ElasticLauncher("cpu")], ids=["current", "elastic"])
def test_a_launcher_is_not_compared_with_a_number(launcher):
    for number in (0, 1.5, True):
        with pytest.raises(
            LauncherValueError, match=f"A launcher was compared with {number}, and is not a number: use launcher.rank"
        ):
            _ = launcher == number
        with pytest.raises(TypeError):
            _ = number != launcher
    with pytest.raises(LauncherValueError):
        _ = launcher in [0, 1]
    same = launcher
    assert launcher == same
    assert launcher != get_current_launcher()
    assert launcher not in (None, "cpu")
    assert {launcher: 1}[launcher] == 1
