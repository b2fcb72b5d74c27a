"""The error file of a launcher: where whoever started it as a torchrun looks for why it failed, named by TORCHELASTIC_ERROR_FILE."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from ice_notebook.context.current_launcher import RUN_ID

VARIABLE = "TORCHELASTIC_ERROR_FILE"
_MOST_BYTES = 1 << 20  # of a rank's own file: user code writes it


def leave_failure(headline: str, rank_file: Path | None = None, *, exit_code: int | None = None, call_stack: str = "") -> None:
    """Write the error file, if one is asked for: what the rank that failed first has left in its own, else what is known of the failure."""
    path = os.environ.get(VARIABLE)
    if path and RUN_ID not in os.environ:  # in a rank of ours the file is the rank's
        found = _read(rank_file) or {
            "message": headline,
            "extraInfo": {"py_callstack": call_stack, "timestamp": str(int(time.time()))},
        }
        if exit_code:
            found["errorCode"] = exit_code
        with contextlib.suppress(OSError):  # nobody is there who could be told better
            Path(path).write_text(json.dumps({"message": found}))


def _read(path: Path | None) -> dict[str, Any]:
    """Return the message in a rank's error file; nothing where there is none of torch's form."""
    try:
        if path is None or path.stat().st_size > _MOST_BYTES:
            return {}
        message = json.loads(path.read_bytes())["message"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {"message": str(message), "extraInfo": {}}
