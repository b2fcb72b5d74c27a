"""The environment that ranks start with, from the kernel's."""

from __future__ import annotations

import pytest

from ice_notebook.kernel.environment import rank_environment

KERNELS = {
    "JPY_PARENT_PID": "12",
    "JPY_SESSION_NAME": "a.ipynb",
    "FORCE_COLOR": "1",
    "CLICOLOR": "1",
    "CLICOLOR_FORCE": "1",
    "PAGER": "cat",
    "GIT_PAGER": "cat",
    "TERM": "xterm-color",
    "PYDEVD_USE_FRAME_EVAL": "NO",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
}
PAGERS = dict.fromkeys(("PAGER", "GIT_PAGER", "MANPAGER", "SYSTEMD_PAGER"), "cat")
ADDED = {"TERM": "xterm-256color", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", **PAGERS}


def of(environment: dict[str, str], n_ranks: int = 1, omp_num_threads: int | None = None, **extra: str) -> dict[str, str]:
    return rank_environment(environment, n_ranks=n_ranks, omp_num_threads=omp_num_threads, extra=extra)


def test_nothing_of_a_kernels_own_is_left_and_plots_are_drawn_without_a_page():
    assert of(KERNELS) == {**ADDED, "MPLBACKEND": "Agg"}


def test_what_the_user_has_set_in_the_kernel_stays():
    users = {"PAGER": "less", "TERM": "screen", "MPLBACKEND": "svg", "FORCE_COLOR": "3", "GLOO_SOCKET_IFNAME": "eth1"}
    assert of({**KERNELS, **users}) == {**ADDED, **users}


def test_outside_a_kernel_nothing_is_taken_for_a_kernels():
    terminals = {"PAGER": "cat", "FORCE_COLOR": "1", "TERM": "xterm-color"}
    assert of(terminals) == {**ADDED, **terminals}


@pytest.mark.parametrize(
    ("n_ranks", "kernels", "asked", "expected"),
    [(1, None, None, None), (2, None, None, "1"), (2, "4", None, "4"), (1, "4", None, "4"), (2, "4", 3, "3"), (1, None, 3, "3")],
)
def test_several_ranks_get_one_thread_each_unless_somebody_has_said_otherwise(n_ranks, kernels, asked, expected):
    environment = {} if kernels is None else {"OMP_NUM_THREADS": kernels}
    assert of(environment, n_ranks, asked).get("OMP_NUM_THREADS") == expected


def test_the_option_env_has_the_last_word():
    assert of(KERNELS, 2, 3, OMP_NUM_THREADS="7", PAGER="cat", MPLBACKEND="pdf")["OMP_NUM_THREADS"] == "7"
    assert of(KERNELS, PAGER="cat")["PAGER"] == "cat"


def test_the_kernels_own_environment_is_left_alone():
    kernels = dict(KERNELS)
    of(kernels, 2, X="1")
    assert kernels == KERNELS
