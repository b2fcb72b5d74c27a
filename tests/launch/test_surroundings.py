"""What the user's code finds around it in a rank: of a real kernel's cells first, then of launches from Python."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Kernel, python

from ice_notebook import ElasticLauncher, get_current_launcher
from ice_notebook.kernel.run import Run

KERNELS_OWN = ("MPLBACKEND", "FORCE_COLOR", "CLICOLOR", "PAGER", "GIT_PAGER", "JPY_PARENT_PID", "TERM")

DEFINITIONS = """
import functools, os, pdb, sys, typing, warnings
import torch
from torch.utils.data import DataLoader, Dataset

class Item:
    def __init__(self, n):
        self.n = n

class Numbers(Dataset):
    def __len__(self):
        return 2
    def __getitem__(self, index):
        return Item(cached_double(Index(index)))

Index = typing.NewType("Index", int)

@functools.lru_cache
def cached_double(x):
    return double(x)

def double(x):
    return 2 * x  # the comment is part of the source

def put_item(queue, n):
    import inspect
    queue.put(Item((double(n), inspect.getsource(double))))

def is_notebook():
    try:
        return "IPKernelApp" in get_ipython().config
    except NameError:
        return False

def run_in_shell(word):
    printed = !echo {word} and $folder_of_base
    !echo printed by a line in a function
    return printed

folder_of_base = "base"

def only(batch):
    return batch[0]
"""

LOOK_AROUND = """%%elastic_launch devices=cpu dist_init=no -o seen
def look_around():
    import argparse, getpass, inspect, multiprocessing, subprocess
    found = {"argv": sys.argv, "arguments": vars(argparse.ArgumentParser().parse_args())}
    main = sys.modules["__main__"]
    found["main"] = (main.__name__, hasattr(main, "__file__"), main.Item is Item)
    found["compiled"] = torch.compile(double, backend="eager")(torch.ones(1)).item()
    found["source"] = inspect.getsource(double)

    for method in ("fork", "spawn", "forkserver"):
        loader = DataLoader(Numbers(), num_workers=1, collate_fn=only, multiprocessing_context=method)
        found["loader", method] = [item.n for item in loader if isinstance(item, Item)]
    for method in ("spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        process = context.Process(target=put_item, args=(queue, 21))
        process.start()
        item = queue.get(timeout=60)
        process.join(60)
        found["process", method] = (isinstance(item, Item), item.n, process.exitcode)

    found["shell"] = run_in_shell("word")
    found["notebook"] = is_notebook()
    found["libraries"] = hasattr(__import__("builtins"), "get_ipython")
    if launcher.rank == 1:
        exit(3)
    with open(os.devnull, "w") as sink:
        found["open"] = open is __import__("builtins").open
    warnings.warn("said by a cell")

    found["environment"] = dict(os.environ)
    found["folder"] = os.getcwd()
    import beside
    found["module beside"] = beside.VALUE
    with open("made by the rank", "w") as made:
        found["mode"] = os.fstat(made.fileno()).st_mode & 0o777

    for ask in (lambda: input("name? "), lambda: getpass.getpass("password? ")):
        try:
            ask()
        except EOFError:
            found.setdefault("end of input", []).append(True)
    breakpoint()
    pdb.set_trace()
    count = "head -c 1 /dev/tty | wc -c"
    found["terminal"] = subprocess.run(count, shell=True, stdout=subprocess.PIPE, timeout=60).stdout
    # A job in the background of a terminal is stopped when it reads from it or changes it, unless it is told not to mind.
    background = f"stty -echo < /dev/tty; {count}"
    found["terminal, background"] = subprocess.run(
        background, shell=True, stdout=subprocess.PIPE, preexec_fn=os.setpgrp, timeout=60).stdout
    return found
"""

BODY = """%%elastic_launch devices=cpu dist_init=no -o body
%cd {folder}
import asyncio
here = %pwd
listed = !ls
!echo from the shell on $base
!!echo nobody keeps this
%env MADE=in the rank
await asyncio.sleep(0)
async def later():
    return base + 1

import tqdm.notebook
from tqdm.notebook import tqdm as bar
for _ in bar(range(2), desc="counted"):
    pass
assert tqdm.notebook.trange(1).total == 1
display("shown", base)
display("again")
(here, listed, os.environ["MADE"], await later(), os.environ["PAGER"], os.environ["MPLBACKEND"])
"""


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """A kernel whose folder, path, environment and umask are changed by its cells, after it was started."""
    top = tmp_path_factory.mktemp("notebook")
    (top / "work").mkdir()
    (top / "modules").mkdir()
    (top / "modules" / "beside.py").write_text("VALUE = 'of the module beside'\n")
    environment = {name: value for name, value in os.environ.items() if name not in KERNELS_OWN}
    environment.pop("OMP_NUM_THREADS", None)
    environment |= {"XDG_CACHE_HOME": str(top / "cache"), "TERM": "dumb", "TAKEN_BACK": "1"}
    kernel = Kernel(cwd=str(top), env=environment)
    defined = kernel.run(
        f"{DEFINITIONS}\nos.chdir('work')\nsys.path.insert(0, {str(top / 'modules')!r})\nos.umask(0o027)\n"
        "os.environ['SET_LATER'] = 'yes'\ndel os.environ['TAKEN_BACK']\nbase = 5"
    )
    assert not defined.error, defined.error
    yield kernel
    kernel.close()


@pytest.fixture(scope="module")
def seen(cells: Kernel) -> dict[Any, Any]:
    """What one rank has found around it."""
    outcome = cells.run(LOOK_AROUND, timeout_s=120)
    assert not outcome.error, outcome.error
    return cells.value("seen.results[0]")


@pytest.fixture(scope="module")
def printed(cells: Kernel, seen: dict[Any, Any]) -> str:
    return cells.value("seen.output(0)")


def test_main_is_a_clean_module_without_a_file_that_holds_the_cells_names(seen):
    assert seen["main"] == ("__main__", False, True)


def test_command_line_is_that_of_a_program_without_arguments(seen):
    assert seen["argv"] == ["cell"], "a name that is a path: libraries look for files beside it"
    assert seen["arguments"] == {}, "argparse must not meet the kernel's or the rank's own arguments"


def test_names_that_ipython_gives_to_notebooks_are_the_ranks_own(seen):
    assert seen["open"] is True
    assert (seen["notebook"], seen["libraries"]) == (False, False), "what asks whether it is in a notebook is not"


def test_lines_for_the_shell_work_in_functions_of_any_cell(seen, printed):
    assert seen["shell"] == ["word and base"]
    assert "printed by a line in a function" in printed.splitlines()


def test_a_warning_names_the_cell(printed):
    assert re.search(r"^Cell In\[\d+\]:\d+: UserWarning: said by a cell$", printed, re.MULTILINE), printed


def test_torch_compile_works_on_a_function_of_a_cell(seen):
    assert seen["compiled"] == 2.0


def test_the_source_of_a_cells_function_is_known(seen):
    assert seen["source"] == "def double(x):\n    return 2 * x  # the comment is part of the source\n"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_data_loader_workers_load_a_cells_dataset_and_return_objects_of_a_cells_class(seen, method):
    assert seen["loader", method] == [0, 2]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_that_do_not_fork_run_a_cells_function(seen, method):
    is_item, (doubled, source), exit_code = seen["process", method]
    assert (is_item, doubled, exit_code) == (True, 42, 0)
    assert source == seen["source"], "what a rank starts knows the cells as well"


def test_what_ipykernel_puts_into_its_environment_for_itself_stays_there(cells, seen):
    kernels = cells.value("dict(os.environ)")
    assert set(KERNELS_OWN) <= set(kernels), "ipykernel has changed: nothing to be kept out"
    ranks = seen["environment"]
    assert set(KERNELS_OWN) & set(ranks) == {"MPLBACKEND", "TERM", "PAGER", "GIT_PAGER"}
    assert {ranks[name] for name in ("PAGER", "GIT_PAGER", "MANPAGER", "SYSTEMD_PAGER")} == {"cat"}, "nobody turns pages in a rank"
    assert ranks["MPLBACKEND"] == "Agg"
    assert ranks["TERM"] == "xterm-256color"
    assert not [name for name in ranks if name.startswith(("JPY_", "PYDEVD_"))]


def test_the_kernels_folder_path_environment_and_umask_of_now_reach_the_rank(seen, tmp_path_factory):
    assert Path(seen["folder"]).name == "work"
    assert seen["module beside"] == "of the module beside"
    assert seen["environment"]["SET_LATER"] == "yes"
    assert "TAKEN_BACK" not in seen["environment"]
    assert seen["mode"] == 0o640


def test_a_single_rank_gets_the_threads_that_torch_gives_it(cells, seen):
    assert cells.value("'OMP_NUM_THREADS' in os.environ") is ("OMP_NUM_THREADS" in seen["environment"]) is False


def test_input_and_getpass_meet_the_end_of_the_input(seen):
    assert seen["end of input"] == [True, True]


def test_breakpoint_and_pdb_print_one_line_and_go_on(printed):
    for call in ("breakpoint()", "set_trace()"):
        lines = [line for line in printed.splitlines() if call in line]
        assert len(lines) == 1
        assert "look_around" in lines[0]


def test_nothing_waits_for_a_key_on_the_terminal(seen):
    assert seen["terminal"].strip() == b"0"
    assert seen["terminal, background"].strip() == b"0"


def test_lines_for_the_shell_and_await_work_in_a_body_and_displays_are_text(cells, seen, tmp_path):
    (tmp_path / "a file").touch()
    # ipykernel sets these two when it starts; what a cell sets after it is the user's.
    cells.run("os.environ['PAGER'], os.environ['MPLBACKEND'] = 'less', 'svg'")
    outcome = cells.run(BODY.format(folder=tmp_path))
    assert not outcome.error, outcome.error
    assert cells.value("body.results[0]") == (str(tmp_path), ["a file"], "in the rank", 6, "less", "svg")
    lines = cells.value("body.output(0)").splitlines()
    assert "from the shell on 5" in lines
    assert any("counted: 100%" in line for line in lines), "an ordinary bar"
    shown = [line for line in lines if line in {"'shown'", "5", "'again'"}]
    assert shown == ["'shown'", "5", "'again'"]
    assert len([line for line in lines if "return the object" in line]) == 1, "one hint"


@pytest.mark.parametrize(
    ("line", "said"),
    [("%matplotlib inline", "%matplotlib needs IPython"), ("%%bash\necho", "%%bash cannot stand inside a launched cell")],
)
def test_magics_that_a_rank_does_not_have_are_refused_before_anything_starts(cells, line, said):
    cells.run("import ice_notebook.runs.store")
    count = "len(list(ice_notebook.runs.store.cache_dir().iterdir())) if ice_notebook.runs.store.cache_dir().exists() else 0"
    before = cells.value(count)
    outcome = cells.run(f"%%elastic_launch devices=cpu\n{line}\n")
    assert outcome.error_name == "CellError"
    assert said in outcome.error
    assert cells.value(count) == before


# ---- from Python -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run of two ranks that asks its launcher everything, in its second attempt."""
    environment = pytest.MonkeyPatch()
    environment.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    environment.delenv("OMP_NUM_THREADS", raising=False)
    launcher = ElasticLauncher("cpu:0-1", max_restarts=1, role="trainer", rdzv_id="exp7", ui="none", start_method="forkserver")
    captured = launcher

    def answer(passed):
        import os
        import subprocess
        import sys

        import torch

        import ice_notebook
        from ice_notebook.errors import LaunchError

        if passed.restart_count == 0:
            raise RuntimeError("once")
        own = ice_notebook.get_current_launcher()
        # fmt: off
        names = ["rank", "local_rank", "world_size", "local_world_size", "group_rank", "group_world_size", "role_rank", "role_name",
                 "role_world_size", "master_addr", "master_port", "restart_count", "max_restarts", "rdzv_id", "devices",
                 "assigned_device", "dist_backend", "eager_mode"]
        # fmt: on
        try:
            ice_notebook.ElasticLauncher("cpu", ui="none")(print)
        except LaunchError as error:
            refusal = str(error)
        child = "import ice_notebook; print(ice_notebook.get_current_launcher())"
        return {
            "launchers": [repr(each) for each in (passed, captured, own)],
            "in a child": subprocess.run(
                [sys.executable, "-c", child], stdout=subprocess.PIPE, text=True, check=True
            ).stdout.strip(),
            "properties": {name: getattr(passed, name) for name in names},
            "refusal": refusal,
            "environment": dict(os.environ),
            "threads": torch.get_num_threads(),
        }

    run = launcher.start(answer, launcher)
    assert run.wait(120)
    environment.undo()
    yield run
    run.kill()


def test_a_launcher_that_travels_arrives_as_the_ranks_own(answers):
    assert answers.phase == "succeeded", answers
    for rank, found in answers.results.items():
        assert found["launchers"] == [f"<launcher: rank {rank} of 2 on cpu:{rank}>"] * 3
        assert found["in a child"] == found["launchers"][0], "what a rank starts answers as its rank"


def test_a_rank_knows_all_of_its_place(answers):
    import torch

    for rank, found in answers.results.items():
        properties = found["properties"]
        assert properties.pop("master_port") > 0
        assert properties == {
            "rank": rank,
            "local_rank": rank,
            "world_size": 2,
            "local_world_size": 2,
            "group_rank": 0,
            "group_world_size": 1,
            "role_rank": rank,
            "role_name": "trainer",
            "role_world_size": 2,
            "master_addr": "127.0.0.1",
            "restart_count": 1,
            "max_restarts": 1,
            "rdzv_id": "exp7",
            "devices": ("cpu:0", "cpu:1"),
            "assigned_device": torch.device("cpu"),
            "dist_backend": "gloo",
            "eager_mode": False,
        }


def test_outside_a_rank_the_launcher_is_one_eager_process():
    eager = get_current_launcher()
    assert (eager.rank, eager.world_size, eager.eager_mode, str(eager.assigned_device.type)) in {
        (0, 1, True, "cpu"),
        (0, 1, True, "cuda"),
    }
    launcher = ElasticLauncher("cpu:0-3")
    assert (launcher.rank, launcher.world_size, launcher.eager_mode) == (0, 1, True), "it is no rank, whatever it would launch"


def test_a_launch_inside_a_rank_is_refused_by_name(answers):
    for rank, found in answers.results.items():
        assert found["refusal"].startswith(f"A launch from inside rank {rank} of a run is not possible")


def test_the_environment_holds_all_that_torchrun_sets(answers, tmp_path):
    """torchrun is torch's own LocalElasticAgent with its own process context."""
    script = tmp_path / "dump.py"
    script.write_text(
        "import json, os, pathlib\n"
        "path = pathlib.Path(__file__).with_name(os.environ['RANK'])\n"
        "path.write_text(json.dumps(dict(os.environ)))\n"
    )
    rendezvous = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--rdzv-id=exp7"]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--max-restarts=1",
        "--role=trainer",
        *rendezvous,
    ]
    before = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    subprocess.run([*command, str(script)], env=before, check=True, timeout=120, stderr=subprocess.DEVNULL)
    differs = {"MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_ERROR_FILE", "TORCHELASTIC_RESTART_COUNT"}
    for rank, found in answers.results.items():
        torchs = json.loads((tmp_path / str(rank)).read_text())
        added = {name: value for name, value in torchs.items() if before.get(name) != value}
        # Meant for torchrun's own process, whose environment its workers inherit: it comes from the launcher, not from the agent.
        added.pop("TORCHELASTIC_SIGNALS_TO_HANDLE", None)
        assert len(added) >= 16, added
        ours = found["environment"]
        assert set(added) <= set(ours)
        assert {name: ours[name] for name in set(added) - differs} == {name: added[name] for name in set(added) - differs}
        assert ours["TORCHELASTIC_RESTART_COUNT"] == "1"


def test_several_ranks_get_one_thread_each_as_with_torchrun(answers):
    assert [(found["environment"]["OMP_NUM_THREADS"], found["threads"]) for found in answers.results.values()] == [("1", 1)] * 2
    assert "OMP_NUM_THREADS" not in os.environ, "never set in the notebook"


def test_what_record_has_written_is_shown_when_the_rank_then_leaves_without_a_word(launch):
    def work():
        import os

        import torch
        from torch.distributed.elastic.multiprocessing.errors import record

        print("threads", torch.get_num_threads(), os.environ["OMP_NUM_THREADS"])

        @record
        def program():
            raise ArithmeticError("lost its precision")

        try:
            program()
        except ArithmeticError:
            os._exit(1)

    run = launch(work, n=1, dist_init="no", omp_num_threads=1)
    assert run.output(0).splitlines()[0] == "threads 1 1", "a single rank has as many threads as cores unless it is told"
    failure = run.failures[0]
    assert failure.headline.startswith("ArithmeticError: lost its precision"), failure
    assert "in program" in failure.traceback
    assert "lost its precision" in str(run.exception())


def test_the_error_file_of_torch_is_written_for_an_ordinary_exception(launch):
    def work():
        import os

        print(os.environ["TORCHELASTIC_ERROR_FILE"])
        raise ArithmeticError("lost its precision")

    run = launch(work, n=1, dist_init="no")
    path = Path(run.output(0).splitlines()[0])
    message = json.loads(path.read_text())["message"]
    assert message["message"] == "ArithmeticError: lost its precision"
    assert "in work" in message["extraInfo"]["py_callstack"]


def test_neither_agent_nor_rank_imports_a_notebook_library(launch, tmp_path, monkeypatch):
    """Stand-ins in front of the module path write down who imports them."""
    import IPython  # noqa: F401 - the stand-in must not be met by this process

    for name in ("IPython", "ipywidgets", "anywidget"):
        (tmp_path / f"{name}.py").write_text(
            f"import os\nwith open({str(tmp_path / name)!r}, 'a') as who:\n    print(os.getpid(), file=who)\n"
        )
    monkeypatch.syspath_prepend(str(tmp_path))

    def work():
        import os

        import anywidget  # noqa: F401 - shows that the stand-ins are met
        import tqdm.auto  # noqa: F401

        return os.getpid()

    run = launch(work, n=1)
    assert (tmp_path / "anywidget").read_text().split() == [str(run.results[0])]
    assert not (tmp_path / "IPython").exists()
    assert not (tmp_path / "ipywidgets").exists()


def test_importing_the_package_in_a_program_looks_at_nothing():
    program = python(
        "import sys, threading, signal; before = signal.getsignal(signal.SIGINT); import ice_notebook; "
        "print('torch' in sys.modules, 'IPython' in sys.modules, threading.active_count(), before is signal.getsignal(signal.SIGINT))"
    )
    assert program.communicate(timeout=60)[0].split() == ["False", "False", "1", "True"]
