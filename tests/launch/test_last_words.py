"""What a failing rank writes last, although the agent ends the attempt at once."""

from __future__ import annotations

from ice_notebook import get_current_launcher


def test_a_failed_rank_finishes_its_traceback_and_its_exception_and_keeps_its_exit_code(launch):
    def work(launcher):
        import os
        import signal

        class SlowError(ValueError):
            """Is still being pickled when the agent, which has heard of the failure, terminates its rank."""

            def __reduce__(self):
                terminated = signal.getsignal(signal.SIGTERM)
                assert callable(terminated), "the rank has put its own handler in place"
                os.kill(os.getpid(), signal.SIGTERM)
                return ValueError, self.args

        if launcher.rank == 1:
            raise SlowError("bad loss")
        return "early"

    run = launch(work, get_current_launcher())
    assert run.phase == "failed"
    assert run.output(1).rstrip().endswith("SlowError: bad loss")
    assert isinstance(run.exception().__cause__, ValueError)
    assert "<td>failed</td><td>1</td>" in run._repr_html_()
    assert "left with exit code" not in repr(run)
    assert "Traceback" not in run._repr_html_(), "the page tells the failure in its own words"
