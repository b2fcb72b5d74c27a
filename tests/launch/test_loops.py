"""How far loops of ranks are, as the notebook is told."""

from __future__ import annotations

from support import wait_until

from ice_notebook import ElasticLauncher
from ice_notebook.kernel.run import Run


def test_the_notebook_knows_how_far_each_ranks_loops_are(start):
    def work(launcher):
        import time

        for _ in launcher.progress(range(3), "epoch"):
            for step in launcher.progress(range(1_000_000), "step"):
                time.sleep(0.001)
                if launcher.rank == 0 and step == 200:
                    break
                if launcher.rank == 1 and step == 20:
                    time.sleep(10_000)

    run = start(work, ElasticLauncher("cpu"), dist_init="no")
    wait_until(lambda: run.progress.get(0) == [["epoch", 3, 3]])
    (epoch, done, total), (step, steps, _) = wait_until(lambda: len(bars := run.progress[1]) == 2 and bars[1][1] > 0 and bars)
    assert (epoch, done, total, step) == ("epoch", 0, 3, "step")
    assert 0 < steps <= 20


def test_the_progress_of_a_failed_attempt_is_forgotten(launch):
    def work(launcher):
        for _ in launcher.progress(range(3), "first" if launcher.restart_count == 0 else "second"):
            if launcher.restart_count == 0:
                raise ValueError

    run = launch(work, ElasticLauncher("cpu"), n=1, dist_init="no", max_restarts=1)
    assert run.phase == "succeeded", run
    assert run.progress == {0: [["second", 3, 3]]}


def test_a_run_opened_again_has_the_output_of_all_attempts(launch):
    def work(launcher):
        print(f"attempt {launcher.restart_count}, rank {launcher.rank}")
        if launcher.restart_count == 0:
            raise ValueError("once")

    run = launch(work, ElasticLauncher("cpu"), n=1, dist_init="no", max_restarts=1)
    opened = Run.open(run.folder)
    starts = opened.logs.attempts()
    assert opened.logs.read_back(0, starts[0][0], 1) == ["attempt 0, rank 0"]
    assert opened.logs.read_back(0, starts[1][0], 9) == ["attempt 1, rank 0"]
