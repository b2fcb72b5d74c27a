"""The same scripts under torchrun and under `ice_notebook launch`: what they find, what they leave, and how it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--master-port", "0"],
    "launch": ["-m", "torch.distributed.launch", "--master-port", "0"],
    "ice_notebook": ["-m", "ice_notebook", "launch"],
}
# The ranks' contract: what torchrun sets. Its store is at a port of its own, its error file in a folder of its own.
CONTRACT = re.compile(r"(LOCAL_|GROUP_|ROLE_|)(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_ADDR|OMP_NUM_THREADS|TORCH.*|PET_.*|PYTHON.*")
ELSEWHERE = {"TORCHELASTIC_ERROR_FILE", "TORCHELASTIC_SIGNALS_TO_HANDLE"}  # the second is torchrun's word to itself

LOOK = """\
import json, os, sys, time
if __name__ == "__main__":
    seen = {
        "environment": dict(os.environ), "argv": sys.argv, "file": __file__, "path": sys.path, "folder": os.getcwd(),
        "package": __package__, "spec": getattr(__spec__, "name", None), "loader": type(__loader__).__name__,
        "buffer": type(sys.stdout.buffer).__name__, "main": sys.modules["__main__"].__file__, "torch": "torch" in sys.modules,
        "names": sorted(globals()),
    }
    name = f"{os.environ['SEEN']}/{os.environ['RANK']}.{os.environ['TORCHELASTIC_RESTART_COUNT']}.json"
    with open(name + ".part", "w") as file:
        json.dump(seen, file)
    os.rename(name + ".part", name)
    if "fail_once" in sys.argv and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1":
        sys.exit(3)
    if "fail" in sys.argv:
        others = [name.replace(f"/{os.environ['RANK']}.", f"/{rank}.") for rank in range(int(os.environ["WORLD_SIZE"]))]
        while not all(os.path.exists(other) for other in others):
            time.sleep(0.01)
        raise ValueError("bad loss")
"""
TALK = """\
import os, sys
print("out of", os.environ["RANK"])
print("err of", os.environ["RANK"], file=sys.stderr)
"""


@dataclass
class Seen:
    """What became of a launch."""

    status: int
    shown: str
    out: str
    err: str
    seen: dict[str, dict[str, Any]]  # by rank and restart: 1.0
    folder: Path


@pytest.fixture
def launched(tmp_path: Path):
    """Return `launched(*words, theirs="torchrun", more=(), **variables)`, which launches in a folder with scripts, by them and at the same time by us.

    It waits, and returns what became of theirs and of ours. `more` words are for ours alone; `variables` are set in the environment of both.
    """
    work = tmp_path / "work"
    package = work / "package"
    package.mkdir(parents=True)
    (work / "look.py").write_text(LOOK)
    (work / "talk.py").write_text(TALK)
    (package / "__init__.py").write_text("")
    (package / "look.py").write_text(LOOK)
    (package / "__main__.py").write_text(LOOK)

    def launch(by: str, words: Sequence[str], variables: dict[str, str]) -> Seen:
        folder = tmp_path / by
        folder.mkdir()
        command = [sys.executable, *LAUNCHERS[by], "--log-dir", str(folder / "logs"), *words]
        environment = {**os.environ, "SEEN": str(folder), **variables}
        environment.pop("OMP_NUM_THREADS", None)
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        seen = {path.name.removesuffix(".json"): json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
        return Seen(done.returncode, done.stdout + done.stderr, done.stdout, done.stderr, seen, folder)

    def launch_both(*words: str, theirs: str = "torchrun", more: Sequence[str] = (), **variables: str) -> tuple[Seen, Seen]:
        with ThreadPoolExecutor(2) as threads:
            return tuple(threads.map(launch, (theirs, "ice_notebook"), (words, [*more, *words]), (variables, variables)))

    return launch_both


def contract(seen: dict[str, Any]) -> dict[str, str]:
    return {key: value for key, value in seen["environment"].items() if CONTRACT.fullmatch(key) and key not in ELSEWHERE}


def without_environment(seen: dict[str, Any]) -> dict[str, Any]:
    # Python joins the working directory and ./package/look.py as they are.
    paths = {key: os.path.normpath(seen[key]) for key in ("file", "main")}
    return {key: value for key, value in seen.items() if key != "environment"} | paths


@pytest.mark.parametrize(
    "words",
    [
        ["look.py", "--lr", "0.1", "a b", "", "{n}", "${local_rank}"],
        ["./package/look.py"],
        ["-m", "package.look", "--nnodes=7"],
        ["-m", "package", "x"],
        ["package", "x"],
        ["--max-restarts", "1", "--role", "trainer", "--rdzv-id", "job7", "look.py", "fail_once"],
        ["--no-python", sys.executable, "-u", "look.py", "x"],
    ],
    ids=lambda words: " ".join(words).replace(sys.executable, "python"),
)
def test_a_script_finds_what_it_finds_under_torchrun(launched, words):
    theirs, ours = launched("--nproc-per-node", "2", *words)
    assert (ours.status, sorted(ours.seen)) == (theirs.status, sorted(theirs.seen)), ours.shown
    assert ours.seen
    for rank, seen in ours.seen.items():
        expected = theirs.seen[rank]
        assert contract(seen) == contract(expected)
        assert without_environment(seen) == without_environment(expected)
        assert set(seen["environment"]) >= set(expected["environment"]) - {"TORCHELASTIC_SIGNALS_TO_HANDLE"}
        assert all(
            key.startswith("ICE_NOTEBOOK_") or key.endswith(("_SOCKET_IFNAME", "PAGER"))
            for key in set(seen["environment"]) - set(expected["environment"])
        )


def test_run_path_gives_the_script_its_name_and_arguments(launched, tmp_path):
    words = ["--nproc-per-node", "2", "--run-path", str(tmp_path / "work" / "look.py"), "--lr", "1"]
    theirs, ours = launched(*words)
    for rank, seen in ours.seen.items():
        for key in ("argv", "file", "folder"):
            assert seen[key] == theirs.seen[rank][key]
        assert contract(seen) == contract(theirs.seen[rank])
    assert (ours.status, sorted(ours.seen)) == (theirs.status, sorted(theirs.seen)) == (0, ["0.0", "1.0"])


def test_the_old_launchers_local_rank_is_passed_too(launched):
    words = ["--nproc-per-node", "2", "look.py", "--lr", "1"]
    theirs, ours = launched(*words, theirs="launch", more=["--use-env=false"])
    assert [seen["argv"] for seen in ours.seen.values()] == [seen["argv"] for seen in theirs.seen.values()]
    assert ours.seen["1.0"]["argv"] == ["look.py", "--local-rank=1", "--lr", "1"]
    assert ours.seen["1.0"]["environment"]["LOCAL_RANK"] == "1"


def test_a_failure_is_one_there_and_here_and_restarts_are_used_up(launched):
    words = ["--nproc-per-node", "2", "--max-restarts", "1", "look.py", "fail"]
    theirs, ours = launched(*words)
    assert (ours.status, theirs.status) == (1, 1)
    assert sorted(ours.seen) == sorted(theirs.seen) == ["0.0", "0.1", "1.0", "1.1"]
    for shown in (ours.shown, theirs.shown):
        assert "ValueError: bad loss" in shown


@pytest.mark.parametrize(
    ("redirects", "tee"),
    [("0", "3"), ("1", "2"), ("2", "1"), ("3", "0"), ("3", "3"), ("0:0,1:1,2:2,3:3", "0:3,1:0,2:1"), ("0:1,2:3", "1:3,2:2,3:1")],
)
def test_redirects_and_tee_leave_the_same_files_and_show_the_same(launched, redirects, tee):

    def shown(std: int, rank: int) -> bool:
        return not std_of(redirects, rank) & std or bool(std_of(tee, rank) & std)

    words = ["--nproc-per-node", "4" if ":" in redirects else "1", "-r", redirects, "-t", tee, "talk.py"]
    theirs, ours = launched(*words)
    assert (ours.status, theirs.status) == (0, 0), ours.shown
    assert files(ours) == files(theirs)
    n_ranks = 4 if ":" in redirects else 1
    assert said(ours) == [
        f"{word} of {rank}" for word, std in (("err", 2), ("out", 1)) for rank in range(n_ranks) if shown(std, rank)
    ]
    assert set(said(theirs)) <= set(said(ours)), "torchrun loses a last line now and then"


def files(seen: Seen) -> dict[str, str]:
    """Return the streams' files by their place below the attempt's folder, those with something in them."""
    logs = [*seen.folder.glob("logs/*/attempt_0/*/stdout.log"), *seen.folder.glob("logs/*/attempt_0/*/stderr.log")]
    return {f"{path.parent.name}/{path.name}": path.read_text() for path in logs if path.read_text()}


def std_of(text: str, rank: int) -> int:
    """Return which streams torch's `Std` grammar names for a rank."""
    return dict(tuple(map(int, part.split(":"))) for part in text.split(",")).get(rank, 0) if ":" in text else int(text)


def said(seen: Seen) -> list[str]:
    return sorted(re.findall(r"(?:out|err) of \d", seen.shown))


def test_what_public_command_lines_write_means_what_it_means_to_torchrun(launched):
    words = ["--nnode=1", "--node_rank=0", "--master_addr=localhost", "--local_addr=localhost", "--redirect", "0", "--tee", "3"]
    words += ["--local-ranks-filter", "1", "--role", "rank", "--shutdown-timeout", "7", "talk.py"]
    template = "[${role_name}${local_rank}|${rank}|$x]: "
    theirs, ours = launched(*words, PET_NPROC_PER_NODE="2", TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE=template)
    assert (ours.status, theirs.status) == (0, 0), ours.shown + theirs.shown
    assert (theirs.out, theirs.err.splitlines()[-1:]) == ("[rank1|1|$x]: out of 1\n", ["[rank1|1|$x]: err of 1"])
    assert (ours.out.splitlines()[1:-1], ours.err) == (["[rank1|1|$x]: out of 1"], "[rank1|1|$x]: err of 1\n")


def test_what_differs_from_torchrun_is_what_the_page_says(launched):
    # Ranks stand before lines; the interpreter is not taken from PYTHON_EXEC; pagers are cat; networks' interfaces are set.
    theirs, ours = launched("--nproc-per-node", "1", "look.py", PYTHON_EXEC="/bin/false", PAGER="")
    assert (theirs.status != 0, ours.status) == (True, 0)
    ours_alone = ours.seen["0.0"]["environment"]
    assert {name: ours_alone[name] for name in ("GIT_PAGER", "PAGER", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")} == {
        "GIT_PAGER": "cat",
        "PAGER": "",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
    }
    assert not theirs.seen


@pytest.mark.parametrize("count", ["1", "3", "cpu", "gpu", "auto"])
def test_ranks_are_counted_as_torchrun_counts_them(launched, count):
    words = ["--nproc-per-node", count, "look.py"]
    theirs, ours = launched(*words)
    assert sorted(ours.seen) == sorted(theirs.seen)
    assert (ours.status == 0) == (theirs.status == 0)
