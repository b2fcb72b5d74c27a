"""How a process ended, in words for a PyTorch user: the sentence behind an exit code."""

from __future__ import annotations

import signal

# What usually sends or causes each signal in a training process; a signal that is not here is named and not explained.
_MEANINGS = {
    "SIGKILL": "something outside the run ended it, often a memory limit or a person",
    "SIGSEGV": "native code, such as an extension or a CUDA library, used memory that is not its own",
    "SIGABRT": "native code gave up, often by an uncaught C++ error or NCCL's watchdog, and said why in the rank's last lines",
    "SIGBUS": "a memory mapping had no room behind it, often /dev/shm too small for DataLoader workers",
    "SIGTERM": "something outside the run asked it to end, such as a scheduler or a shutdown",
    "SIGINT": "something outside the run interrupted it",
    "SIGHUP": "its terminal was closed",
    "SIGQUIT": "something outside the run asked it to quit and dump its core",
    "SIGILL": "native code used an instruction that this processor does not have, often a library built for another one",
    "SIGFPE": "native code divided an integer by zero",
    "SIGPIPE": "it wrote to a pipe or a socket whose other end was closed",
    "SIGSYS": "it made a system call that a sandbox forbids",
    "SIGXCPU": "it used up the processor time that a limit allows",
    "SIGXFSZ": "it wrote a file larger than a limit allows",
}
INTERRUPTED = "interrupted by a SIGINT from outside the run, or from its own code"
_C_LONG = 1 << 63
_OUT_OF_MEMORY = "the system was out of memory: use smaller batches, fewer ranks or fewer DataLoader workers"


def status_of_exit(code: object) -> int:
    """Return the exit status that Python leaves with after `sys.exit(code)`, as the system keeps it: `sys.exit(-1)` is 255."""
    if code is None:
        return 0
    if not isinstance(code, int):
        return 1  # it is printed
    # Beyond a C long Python takes -1, and of all numbers the system keeps one byte.
    return (code if -_C_LONG <= code < _C_LONG else -1) & 0xFF


def shell_status(exit_code: int) -> int:
    """Return an exit code as a shell has it: 128 and the number of the signal for a process that a signal ended."""
    return 128 - exit_code if exit_code < 0 else exit_code


def explain_exit(exit_code: int, *, out_of_memory: bool = False) -> str:
    """Return how a process ended as a part of a sentence: `killed by SIGKILL (signal 9); the system was out of memory: …`.

    A negative code is the signal that ended the process, as `subprocess` gives it. `out_of_memory` says that the kernel counted an
    out-of-memory kill meanwhile; it explains a SIGKILL and nothing else. The words are the same in every repetition of a run.
    """
    if exit_code < 0:
        return _explain_signal(-exit_code, out_of_memory=out_of_memory)
    if exit_code == 0:
        return "left with exit code 0 without returning a value (os._exit, or an exit in native code)"
    return f"left with exit code {exit_code}"


def _explain_signal(number: int, *, out_of_memory: bool) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:  # a real-time signal: it has a number and no name
        return f"killed by signal {number}"
    meaning = _OUT_OF_MEMORY if out_of_memory and name == "SIGKILL" else _MEANINGS.get(name)
    killed = f"killed by {name} (signal {number})"
    return f"{killed}; {meaning}" if meaning else killed
