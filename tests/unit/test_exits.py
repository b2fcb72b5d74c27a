from __future__ import annotations

import signal

import pytest

from ice_notebook.runs.exits import explain_exit, status_of_exit


def test_a_kill_for_want_of_memory_says_so() -> None:
    text = explain_exit(-9, out_of_memory=True)
    assert text.startswith("killed by SIGKILL (signal 9); the system was out of memory")
    assert "out of memory" not in explain_exit(-9, out_of_memory=False)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("SIGSEGV", "used memory that is not its own"),
        ("SIGABRT", "an uncaught C++ error or NCCL's watchdog"),
        ("SIGBUS", "/dev/shm too small for DataLoader workers"),
        ("SIGTERM", "asked it to end, such as a scheduler"),
        ("SIGINT", "interrupted it"),
        ("SIGHUP", "its terminal was closed"),
        ("SIGILL", "an instruction that this processor does not have"),
        ("SIGFPE", "divided an integer by zero"),
        ("SIGPIPE", "whose other end was closed"),
        ("SIGSYS", "a system call that a sandbox forbids"),
        ("SIGXCPU", "the processor time that a limit allows"),
        ("SIGXFSZ", "a file larger than a limit allows"),
    ],
)
def test_a_signal_is_named_and_explained_even_when_memory_was_short(name: str, words: str) -> None:
    number = signal.Signals[name].value
    text = explain_exit(-number, out_of_memory=True)
    assert text.startswith(f"killed by {name} (signal {number}); ")
    assert words in text
    assert text.isprintable()
    assert not text.endswith(".")


def test_a_signal_without_an_explanation_is_named() -> None:
    assert explain_exit(-signal.SIGUSR1) == f"killed by SIGUSR1 (signal {signal.SIGUSR1.value})"


def test_a_signal_without_a_name_has_its_number() -> None:
    assert explain_exit(-signal.SIGRTMIN - 5) == f"killed by signal {signal.SIGRTMIN + 5}"


def test_an_exit_code_is_named_and_0_is_explained() -> None:
    assert explain_exit(3) == "left with exit code 3"
    assert explain_exit(0) == "left with exit code 0 without returning a value (os._exit, or an exit in native code)"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (None, 0), (0, 0), (False, 0), (256, 0), (True, 1), (7, 7), (-1, 255), (-9, 247), (300, 44), (2**70, 255), (-(2**70), 255),
        ("no data", 1), ("", 1), (0.0, 1), ([], 1), ({"a": 1}, 1),
    ],
)  # fmt: skip
def test_an_exit_leaves_with_the_status_that_python_gives(code: object, status: int) -> None:
    assert status_of_exit(code) == status
