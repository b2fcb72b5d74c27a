"""Output of processes brought into a cell as people do it: a thread reads each, and what has come is shown 10 times a second. Runs in the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import IO

N_RANKS = 8
_PAUSE_S = 0.1  # as the panel has; a cell that shows each line by itself does worse


def pump(args: tuple[str, float, float], show: Callable[[str], object]) -> None:
    """Have as many processes as there are ranks do `work.talk`, and show what they print, until they have ended."""
    code = f"from benchmarks.work import talk; talk(*{args!r})"
    lines: deque[str] = deque()
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "RANK": str(rank)})
        for rank in range(N_RANKS)
    ]
    threads = [threading.Thread(target=_read, args=(process.stdout, lines)) for process in processes]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or lines:
        time.sleep(_PAUSE_S)
        if text := "".join(lines.popleft() for _ in range(len(lines))):
            show(text)
    for process in processes:
        process.wait()


def _read(stream: IO[str], lines: deque[str]) -> None:
    lines.extend(stream)
