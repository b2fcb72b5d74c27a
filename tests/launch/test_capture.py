"""What travels to the ranks: what the function or the body refers to, as it is now, once for all of them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from support import HANG_S, Kernel, wait_until

from ice_notebook import ElasticLauncher
from ice_notebook.errors import PayloadError
from ice_notebook.values import shared_values

DEFINITIONS = """
import threading
handle, guard = open('/dev/null'), threading.Lock()  # nobody refers to them, so that they do not matter
scale, offset = 3, 0
class Base:
    def twice(self):
        return helper(self.n) + helper(self.n)
class Point(Base):
    def __init__(self, n):
        self.n = n
def helper(n):
    return shifted(n) * scale
shifted = lambda n: n + offset
def counter():
    count = 0
    def step():
        nonlocal count
        count += 1
        return count
    return step
step = counter()
step()
"""

LAUNCH = """%%elastic_launch devices=cpu:0-1 dist_init=no -o caught
def work(launcher):
    global offset
    before = Point(4).twice()
    offset = 100
    return Point(launcher.rank), before, helper(0), [step(), step()]
"""


@pytest.fixture(scope="module")
def cells(shared_kernel: Kernel) -> Kernel:
    """A kernel with definitions, and a run that used them."""
    assert not shared_kernel.run(DEFINITIONS).error
    shared_kernel.run("offset = 1")  # the value of the launch counts, not that of the definition
    outcome = shared_kernel.run(LAUNCH)
    assert not outcome.error, outcome.error
    return shared_kernel


def test_functions_classes_closures_and_globals_travel_by_value_as_they_are_at_the_launch(cells: Kernel):
    assert cells.value("[value[1:] for value in caught.results.values()]") == [(30, 300, [2, 3])] * 2


def test_nothing_that_a_rank_changes_comes_back(cells: Kernel):
    assert cells.value("(offset, helper(0))") == (1, 3)
    assert cells.value("step()") == 2, "the notebook's own closure has not been called meanwhile"


def test_an_instance_of_a_cells_class_comes_back_as_one_of_the_notebooks_class(cells: Kernel):
    found = cells.value("[(type(value[0]) is Point, isinstance(value[0], Base), value[0].n) for value in caught.results.values()]")
    assert found == [(True, True, 0), (True, True, 1)]


@pytest.mark.parametrize(
    ("statement", "name", "is_a"),
    [
        ("None", "handle", "is an open file. Open it in the function."),
        ("box = {'inner': [guard]}", "box['inner'][0]", "is a lock. Create it in the function."),
        ("lines = (line for line in 'ab')", "lines", "is a generator, which can only go on where it began."),
        ("None", "caught", "is a Run, which controls processes of this notebook."),
    ],
)
def test_what_cannot_travel_is_refused_by_name_and_line_before_anything_starts(cells: Kernel, tmp_path, statement, name, is_a):
    variable = name.partition("[")[0]
    cells.run(f"import ice_notebook.runs.store, ice_notebook.values.shared_values, os, pathlib\n{statement}")
    of_the_system = "ice_notebook.values.shared_values.SHARED_MEMORY = pathlib.Path('/dev/shm')"
    cells.run(of_the_system.replace("/dev/shm", str(tmp_path)))  # others use that meanwhile
    left = "(sorted(os.listdir(ice_notebook.runs.store.cache_dir())), sorted(os.listdir(ice_notebook.values.shared_values.SHARED_MEMORY)))"
    before = cells.value(left)
    outcome = cells.run(f"%%elastic_launch devices=cpu:0-1 -o never\ndef use():\n    one = 1\n    return {variable}, one")
    assert outcome.error.startswith(f"PayloadError: `{name}` cannot be sent to the ranks: it {is_a}"), outcome.error
    assert outcome.error.endswith(f"`use` uses it in line 4: return {variable}, one"), outcome.error
    assert cells.value(left) == before
    assert cells.value("'never' in globals()") is False
    cells.run(of_the_system)


def test_what_cannot_be_loaded_in_the_ranks_is_told_by_name_with_its_line(cells: Kernel):
    cells.run(
        "class Broken:\n    def __setstate__(self, state):\n        raise ValueError('not here')\nbroken = Broken()\nbroken.x = 1"
    )
    outcome = cells.run("%%elastic_launch devices=cpu dist_init=no\ndef use():\n    return scale, broken")
    assert outcome.error.startswith(
        "RunFailed: rank 0: LoadError: `broken` could not be loaded in the ranks: ValueError: not here."
    ), outcome.error
    assert "----> 3         raise ValueError('not here')" in outcome.error
    assert "ice_notebook" not in outcome.error


def test_lines_are_those_of_the_whole_cell_with_magics_above_ours(cells: Kernel):
    outcome = cells.run("%%time\n%%elastic_launch devices=cpu dist_init=no\ndef use():\n    return no_such_name")
    assert "line 4)" in outcome.error.splitlines()[0], outcome.error
    assert "      3 def use():\n----> 4     return no_such_name" in outcome.error
    assert "      1" not in outcome.error, "no line for a magic"


def test_a_function_that_wants_a_number_is_refused_with_what_to_write(cells: Kernel):
    outcome = cells.run("%%elastic_launch devices=cpu:0-1\ndef main(rank, world_size):\n    return rank == 0")
    assert outcome.error == (
        "CellError: `main` requires rank and world_size, which are not passed: a launched function gets a launcher. "
        "Write `def main(launcher)`, and use launcher.rank and launcher.world_size."
    )


def test_a_body_takes_what_it_mentions_and_what_it_assigns_first_is_its_own(cells: Kernel):
    cells.run("n, total, chosen = 5, 10, 'the notebook s'")
    outcome = cells.run(
        "%%elastic_launch devices=cpu dist_init=no -o body\n"
        "handle = 'its own'\n"  # an open file in the notebook: not sent
        "for guard in range(3):\n"  # a lock there
        "    handle += str(guard)\n"
        "total += 1\n"  # read before it is assigned
        "if launcher.rank > 0:\n"
        "    chosen = 'set on one way only'\n"
        "def inner():\n"
        "    return n + local\n"  # assigned below, before it is called
        "local = 2\n"
        "class Made:\n"
        "    size = n\n"
        "(handle, total, chosen, inner(), Made.size, [n * k for k in range(2)], Point(1).n)"
    )
    assert not outcome.error, outcome.error
    assert cells.value("body.results[0]") == ("its own012", 11, "the notebook s", 7, 5, [0, 5], 1)
    assert cells.value("(total, type(handle).__name__, 'inner' in globals(), 'Made' in globals())") == (
        10,
        "TextIOWrapper",
        False,
        False,
    )


# ---- from Python -----------------------------------------------------------------------------------------------------------------------


def test_a_local_module_is_what_it_is_on_disk_unless_it_is_sent_by_value(launch, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "local_part_of_a_project.py"
    module.write_text("def answer():\n    return 'first'\n")
    import local_part_of_a_project

    def work():
        return local_part_of_a_project.answer(), local_part_of_a_project.__file__

    assert launch(work, n=1, dist_init="no").results[0] == ("first", str(module))
    module.write_text("def answer():\n    return 'edited meanwhile'\n")
    assert local_part_of_a_project.answer() == "first", "what this process has imported has not changed"
    assert launch(work, n=1, dist_init="no").results[0][0] == "edited meanwhile"

    answer = local_part_of_a_project.answer

    def call():
        return answer()

    assert launch(call, n=1, dist_init="no", by_value="local_part_of_a_project").results[0] == "first"


def test_a_big_tensor_is_written_once_mapped_by_every_rank_and_unlinked_when_it_is_not_needed_any_more(start, tmp_path):
    import torch

    big = torch.arange(16 << 20, dtype=torch.int32)  # 64 MiB
    gates = [tmp_path / "fail", tmp_path / "return"]

    def work(launcher):
        import os
        import time

        import torch.distributed as dist

        def mapping():
            """Return inode and counters (in KiB) of the mapping that holds the tensor."""
            fields = {}
            with open("/proc/self/smaps") as smaps:
                for line in smaps:
                    first, *rest = line.split()
                    if "-" in first:
                        start, end = (int(part, 16) for part in first.split("-"))
                        if fields:
                            break
                        is_found = start <= big.data_ptr() < end
                        inode = rest[3]
                    elif is_found:
                        fields[first.rstrip(":")] = rest[0]
            return inode, int(fields["Rss"]), int(fields["Anonymous"])

        inode, mapped_before, _ = mapping()
        total = int(big.sum())
        _, mapped, copied = mapping()
        dist.barrier()
        if launcher.rank == 0:
            big[0] = 77
        dist.barrier()
        print("waits", flush=True)
        while not os.path.exists(gates[launcher.restart_count]):
            time.sleep(0.01)
        if launcher.restart_count == 0:
            raise RuntimeError("once more")
        return {"inode": inode, "before": mapped_before, "mapped": mapped, "copied": copied, "total": total, "first": int(big[0])}

    run = start(work, ElasticLauncher("cpu"), max_restarts=1)
    shared = Path(run.plan.shared_dir)
    payload = Path(run.plan.payload)

    def waits(attempt: int) -> bool:
        if run.done():
            pytest.fail(repr(run))
        return (
            run.state.attempt is not None
            and run.state.attempt.number == attempt
            and all("waits" in run.output(r, attempt) for r in (0, 1))
        )

    wait_until(lambda: waits(0))
    assert [path for path in shared.iterdir() if path.name != ".owner"] == [payload], (
        "one file for both ranks, and a further attempt will need it"
    )
    assert 64 << 20 < payload.stat().st_size < 65 << 20
    inode = str(payload.stat().st_ino)
    gates[0].touch()
    wait_until(lambda: waits(1))
    wait_until(lambda: not payload.exists(), 5)
    gates[1].touch()
    assert run.wait(HANG_S)
    for rank, found in run.results.items():
        assert found["inode"] == inode, "the file itself is mapped, by every rank"
        assert found["before"] < 1024, "KiB: nothing is read before it is touched"
        assert found["mapped"] > 65000
        assert found["copied"] < 1024, "KiB: the memory is the file's, not the rank's"
        assert found["total"] == sum(range(16 << 20)) % (1 << 64)
        assert found["first"] == (77 if rank == 0 else 0), "what a rank writes is its own"
    assert int(big[0]) == 0


def test_a_launch_that_is_refused_from_python_leaves_no_file_and_no_process(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    guard = threading.Lock()

    def work():
        return guard

    monkeypatch.setattr(shared_values, "SHARED_MEMORY", tmp_path)
    threads = threading.active_count()
    launcher = ElasticLauncher("cpu:0-1", ui="none")
    with pytest.raises(
        PayloadError, match=r"`guard` cannot be sent to the ranks: it is a lock. Create it in the function. `work` uses it in line"
    ):
        launcher.start(work)
    assert not list(cache.rglob("*"))
    assert not list(tmp_path.iterdir())
    assert threading.active_count() == threads
    with pytest.raises(PayloadError, match=r"`args\[0\]` cannot be sent to the ranks: it is a lock"):
        launcher.start(print, guard)
    assert not list(cache.rglob("*"))
