"""The error file that a launcher leaves where whoever started it looks for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ice_notebook.ui.launcher_error import VARIABLE, leave_failure

RECORDED = {"message": {"message": "ValueError: bad loss", "extraInfo": {"py_callstack": "Traceback …", "timestamp": "17"}}}


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    path = tmp_path / "error.json"
    monkeypatch.setenv(VARIABLE, str(path))
    monkeypatch.delenv("ICE_NOTEBOOK_RUN_ID", raising=False)
    return lambda: json.loads(path.read_text())["message"] if path.exists() else None


def test_what_the_rank_has_recorded_is_passed_on_with_its_code(left: Any, tmp_path: Path) -> None:
    (tmp_path / "rank.json").write_text(json.dumps(RECORDED))
    leave_failure("another headline", tmp_path / "rank.json", exit_code=7)
    assert left() == {**RECORDED["message"], "errorCode": 7}


@pytest.mark.parametrize(
    "recorded", ["", "{", "[]", '{"message": null}', "[" * 100_000, '{"other": 1}', '{"message": "just a text"}', " " * (2 << 20)]
)
def test_a_file_of_another_form_is_not_passed_on(left: Any, tmp_path: Path, recorded: str) -> None:
    (tmp_path / "rank.json").write_text(recorded)
    leave_failure("killed by SIGKILL (signal 9)", tmp_path / "rank.json", exit_code=-9, call_stack="none")
    found = left()
    assert found["errorCode"] == -9
    assert found["message"] in {"killed by SIGKILL (signal 9)", "just a text", "None"}
    assert isinstance(found["extraInfo"], dict)


def test_without_a_rank_the_headline_is_left_and_without_a_place_nothing(
    left: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    leave_failure("the run was stopped by an interrupt", tmp_path / "missing.json")
    assert left()["message"] == "the run was stopped by an interrupt"
    assert "errorCode" not in left()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "no such folder" / "error.json"))
    leave_failure("nobody hears this")
    monkeypatch.delenv(VARIABLE)
    leave_failure("nor this")


def test_in_a_rank_the_file_is_the_ranks(left: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICE_NOTEBOOK_RUN_ID", "of a run")
    leave_failure("a launch in a rank is refused")
    assert left() is None
