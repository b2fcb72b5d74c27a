"""How a rank ended that could not say so, read from files that user code had in its hands."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ice_notebook.host.suspect_files import last_words, read_suspect
from ice_notebook.runs import crashes
from ice_notebook.runs.crashes import failure_from_exit
from ice_notebook.wire import protocol as p

EXIT = "left with exit code 3"
CRASH = """Fatal Python error: Segmentation fault

Current thread 0x00007f (most recent call first):
  File "/x/library.py", line 7 in call
  File "/tmp/cell.py", line 2 in train

Extension modules: numpy
"""


class Files:
    def __init__(self, folder: Path) -> None:
        self.error, self.stacks, self.sources = (folder / name for name in ("error.json", "stacks.txt", "sources.json"))
        self.sources.write_text(json.dumps({"/tmp/cell.py": ["Cell In[3]", "def train():\n    crash()\n"]}))

    def failure(self, code: int = 3) -> p.Failure:
        return failure_from_exit(code, out_of_memory=False, stacks=self.stacks, sources=self.sources, error_file=self.error, at=1.0)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_torchs_error_file_gives_message_and_stack(files):
    files.error.write_text(
        json.dumps({"message": {"message": "ValueError: bad loss\nmore", "extraInfo": {"py_callstack": "stack"}}})
    )
    failure = files.failure()
    assert (failure.headline, failure.traceback, failure.exit_code) == (f"ValueError: bad loss ({EXIT})", "stack", 3)
    files.error.write_text(json.dumps({"message": " a text alone "}))
    assert files.failure().headline == f"a text alone ({EXIT})"


@pytest.mark.parametrize(
    ("content", "headline"),
    [
        (b"", EXIT),
        (b"\xff\xfe\x00", EXIT),
        (b"null", EXIT),
        (b"[]", EXIT),
        (b"3", EXIT),
        (b'{"message": null}', EXIT),
        (b'{"message": [1, 2]}', EXIT),
        (b'{"message": 7}', EXIT),
        (b'{"message": {}}', EXIT),
        (b'{"message": {"message": null, "extraInfo": null}}', EXIT),
        (b'{"message": {"message": ["x"], "extraInfo": []}}', EXIT),
        (b'{"message": {"message": "x", "extraInfo": null}}', f"x ({EXIT})"),
        (b'{"message": {"message": "x", "extraInfo": "text"}}', f"x ({EXIT})"),
        (b'{"message": {"message": "x", "extraInfo": {"py_callstack": {"a": 1}}}}', f"x ({EXIT})"),
        (b'{"message": "a file \\udce9"}', rf"a file \udce9 ({EXIT})"),
        (b'{"message": "' + b"y" * 100_000 + b'"}', f"{'y' * 500} ({EXIT})"),
        (b'{"message": "' + b"y" * (2 << 20) + b'"}', EXIT),
        (b"[" * 100_000, EXIT),
        (b'{"message": ' + b'{"a": ' * 100_000, EXIT),
        (b'{"message": ' + b"9" * 10_000 + b"}", EXIT),
        ('{"message": "\\u0000\\u001b[2J 训练"}'.encode(), f"\x00\x1b[2J 训练 ({EXIT})"),
    ],
    ids=lambda value: ascii(value)[:50],
)
def test_whatever_stands_in_an_error_file_the_rank_is_told_of_and_the_message_as_far_as_it_is_one(files, content, headline):
    files.error.write_bytes(content)
    failure = files.failure()
    assert failure.headline == headline
    assert p.decode(p.encode(failure), p.Failure) == failure


@pytest.mark.parametrize("what", ["pipe", "folder", "link", "device", "loop"])
def test_what_is_no_file_is_not_waited_for(files, what, tmp_path):
    (tmp_path / "target").write_text('{"message": "of somebody else"}')
    for path in (files.error, files.stacks):
        if what == "pipe":
            os.mkfifo(path)
        elif what == "folder":
            path.mkdir()
        else:
            path.symlink_to({"link": tmp_path / "target", "device": "/dev/zero", "loop": path}[what])
    assert files.failure(-11).headline.startswith("killed by SIGSEGV")


def test_a_crash_names_the_cells_line_also_at_the_end_of_a_long_file(files):
    files.stacks.write_text("x\n" * 500_000 + CRASH)
    failure = files.failure(-11)
    assert [(frame.where, frame.line, frame.source) for frame in failure.frames] == [("Cell In[3]", 2, "crash()")]
    assert failure.excerpt == p.Excerpt(where="Cell In[3]", first=1, lines=("def train():", "    crash()"), failing=2)
    assert "Cell In[3]" in failure.traceback


@pytest.mark.parametrize(
    "sources",
    [b"", b"[]", b'{"/tmp/cell.py": 3}', b'{"/tmp/cell.py": ["a"]}', b'{"/tmp/cell.py": ["a", null]}', b"[" * 100_000, b"\xff"],
    ids=lambda value: ascii(value)[:30],
)
def test_texts_of_cells_that_are_none_are_left_out(files, sources):
    files.stacks.write_text(CRASH)
    files.sources.write_bytes(sources)
    failure = files.failure(-11)
    assert (failure.frames, failure.excerpt) == ((), None)
    assert failure.traceback.startswith("Fatal Python error")


def test_stacks_that_somebody_has_written_are_bounded(files):
    frames = '  File "/tmp/cell.py", line 99999999999999 in f\n' + '  File "/tmp/cell.py", line 0 in f\n' * 5_000
    files.stacks.write_text(f"Fatal Python error\nCurrent thread 0x1 (most recent call first):\n{frames}")
    assert len(files.failure(-11).frames) <= crashes.MOST_FRAMES


# ---- the reading itself ------------------------------------------------------------------------------------------------------------------


def test_a_file_is_read_from_either_end(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    assert read_suspect(path, 4) == b"0123"
    assert read_suspect(path, 4, is_end=True) == b"6789"
    assert read_suspect(path, 100) == read_suspect(path, 100, is_end=True) == b"0123456789"


def test_the_last_words_of_a_log_are_its_last_line_with_anything_in_it(tmp_path):
    log = tmp_path / "agent.log"
    assert last_words(log) == ""
    log.write_text("first\nImportError: no Queue\n\n  \n")
    assert last_words(log) == "ImportError: no Queue"
    log.write_text("x" * 10_000)
    assert last_words(log) == "x" * 299 + "…"
