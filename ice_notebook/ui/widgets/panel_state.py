"""What a page must know to draw a run: `RunState` to plain JSON, bounded. Pure."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ice_notebook.errors import join
from ice_notebook.runs.report import (
    cause_of,
    is_echo,
    join_command,
    loss_sentences,
    reach_sentence,
    root_of,
    shown_phase,
    stop_words,
    waiting_sentence,
)
from ice_notebook.runs.state import Attempt, Phase, RankPhase, RankState, RunState
from ice_notebook.wire.protocol import Failure, Plan, StopReason

VALUE_CHARACTERS = 4_000
VALUES_CHARACTERS = 200_000  # of all ranks together: the snapshot is sent anew at each change, and may be saved in the notebook
TRACEBACK_CHARACTERS = 20_000
WORTH_SAYING_S = 0.2  # of an import that a launch was spared
PACKAGES_NAMED = 2


def snapshot(plan: Plan, state: RunState, folder: Path) -> dict[str, Any]:
    """Return all that a page needs to draw a run, as plain JSON."""
    ranks = state.ranks
    root = _root_so_far(state)
    shown = [_rank(ranks[rank], root) for rank in sorted(ranks)] or [
        {"rank": rank.local_rank, "device": rank.device, "phase": "starting", "note": "", "pid": None} for rank in plan.ranks
    ]
    return {
        "name": plan.name,
        "devices": _devices(plan),
        "world_size": state.attempt.world_size if state.attempt else plan.world_size,
        "phase": state.phase.value,
        "is_final": state.phase.is_final,
        "began_at": state.began_at,
        "ended_at": state.ended_at,
        "attempts": [attempt.number for attempt in state.attempts],
        "restarts": state.restarts,
        "max_restarts": plan.max_restarts,
        "grace": plan.grace,
        "folder": str(folder),
        "home": os.path.expanduser("~"),
        "banner": banner(plan, state),
        "ranks": shown,
        "results": _results(ranks),
        "failures": [
            _failure(rank, failure, ranks[rank], state, is_root=i == 0) for i, (rank, failure) in enumerate(state.failures.items())
        ],
        "ended_with_it": [rank for rank in sorted(ranks) if state.failures and shown_phase(ranks[rank], root) is RankPhase.STOPPED],
    }


def _devices(plan: Plan) -> str:
    """Return the devices, who chose them, and what standby ranks had imported for them when that is worth a word."""
    chosen = f"{plan.devices} ({plan.devices_by})" if plan.devices_by else plan.devices
    saved = {package: seconds for package, seconds in plan.preloaded.items() if seconds >= WORTH_SAYING_S}
    if not saved:
        return chosen
    most = sorted(saved, key=lambda package: -saved[package])
    named = [*most[:PACKAGES_NAMED], *(["others"] if len(most) > PACKAGES_NAMED else [])]
    return f"{chosen} · {join(named, 'and')} preloaded, {format_duration(sum(saved.values()))} saved"


def banner(plan: Plan, state: RunState) -> dict[str, str] | None:
    """Return what stands out: what went wrong or is being done about it, and what is missing in the log files."""
    found = _banner(plan, state)
    if not (losses := [_sentence(line) for line in loss_sentences(state)]):
        return found
    return {"kind": found["kind"] if found else "lost", "text": "\n".join([*([found["text"]] if found else []), *losses])}


def _banner(plan: Plan, state: RunState) -> dict[str, str] | None:
    attempt = state.attempt
    before = state.attempts[-2] if len(state.attempts) > 1 else None
    if state.phase is Phase.FAILED:
        return {
            "kind": "failed",
            "text": (not (attempt and attempt.ended_by) and _why(attempt)) or _sentence(state.end_reason) or "The run failed.",
        }
    if state.phase is Phase.STOPPED:
        return {"kind": "stopped", "text": _sentence(stop_words(plan, state) or state.end_reason or "stopped")}
    if state.phase is Phase.STOPPING:
        how = (
            "all ranks are being ended now"
            if state.stop_reason is StopReason.KILL
            else f"ranks have up to {plan.grace:g} s to finish"
        )
        return {"kind": "stopping", "text": f"Stopping: {how}."}
    if state.phase is Phase.RESTARTING:
        return {"kind": "restarting", "text": f"{_sentence(_left(attempt))} All ranks are started again.".strip()}
    if waiting := waiting_sentence(plan, state):
        more = " ".join(_sentence(text) for text in (reach_sentence(state), *state.refused[-1:]) if text)
        command = join_command(plan, state)  # a line of its own, which three clicks choose
        if not command:  # nodes that are each started by hand
            return {"kind": "restarting", "text": _sentence(waiting)}
        return {"kind": "restarting", "text": f"{_sentence(waiting)} On each other node run:\n{command}\n{more}".strip()}
    if before is not None and not state.phase.is_final:
        return {"kind": "restarting", "text": f"Attempt {len(state.attempts)}: {_left(before)}. All ranks were started again."}
    if not state.phase.is_final and plan.nodes is not None and 0 < len(state.present_nodes) < plan.nodes.most and state.meeting:
        here = f"{len(state.present_nodes)} of up to {plan.nodes.most} nodes are here"
        return {"kind": "restarted", "text": f"{_sentence(here)} Others join with:\n{join_command(plan, state)}"}
    if before is not None:
        return {"kind": "restarted", "text": f"It took {len(state.attempts)} attempts. {_sentence(_left(before))}".strip()}
    if (note := plan.start_note or state.start_note) and not state.phase.is_final:
        return {"kind": "cold", "text": f"Cold start: {note}."}
    return None


def _why(attempt: Attempt | None) -> str:
    rank = None if attempt is None or attempt.root is None else attempt.ranks.get(attempt.root)
    if rank is None or rank.failure is None:
        return ""
    return _sentence(f"rank {rank.rank} ({rank.device}) failed: {rank.failure.headline}")


def _left(attempt: Attempt | None) -> str:
    """Say which rank left, after how long, and why; or which node came or went."""
    if attempt is not None and attempt.ended_by:
        return attempt.ended_by
    rank = None if attempt is None or attempt.root is None else attempt.ranks.get(attempt.root)
    if attempt is None or rank is None or rank.failure is None:
        return "the attempt before failed"
    seconds = max(0.0, (attempt.failed_at or rank.failure.at) - attempt.began_at)
    return f"rank {rank.rank} ({rank.device}) left after {format_duration(seconds)}: {rank.failure.headline.rstrip('.')}"


def format_duration(seconds: float) -> str:
    """Return a time as people say it: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text[:1].upper() + text[1:].rstrip(".") + "." if text else ""


def _root_so_far(state: RunState) -> int | None:
    """Return the rank whose failure is the cause of the others', as far as is known while the run goes on."""
    if state.phase.is_final or state.attempt is None:
        return root_of(state)
    cause = cause_of(state.attempt)
    return None if cause is None else cause[0]


def _rank(rank: RankState, root: int | None) -> dict[str, Any]:
    failure = None if is_echo(rank, root) else rank.failure
    code = failure.exit_code if failure and failure.exit_code is not None else rank.exit_code
    note = _exit_text(code).replace("exit code", "exit") if failure else ""  # a chip has little room
    return {
        "rank": rank.rank,
        "device": rank.device,
        "phase": shown_phase(rank, root).value,
        "note": note or rank.note,
        "said": rank.failure.headline if rank.failure else "",  # instead of its last line
        "pid": rank.pid,
    }


def _exit_text(code: int | None) -> str:
    if not code:
        return ""
    if code > 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _results(ranks: Mapping[int, RankState]) -> list[dict[str, Any]]:
    room = VALUES_CHARACTERS
    results = []
    for rank in sorted(ranks):
        value, lost = ranks[rank].value, ranks[rank].lost
        if value is None:
            if lost:
                results.append({"rank": rank, "lost": lost[:VALUE_CHARACTERS]})
            continue
        text = value.text[: min(VALUE_CHARACTERS, max(200, room))]
        html = value.html if len(value.html) <= room else ""
        room -= len(text) + len(html)
        results.append(
            {
                "rank": rank,
                "type": value.type_name,
                "text": text + ("…" if len(text) < len(value.text) else ""),
                "html": html,
                "size_bytes": value.size_bytes,
            },
        )
    return results


def _failure(rank: int, failure: Failure, state: RankState, run: RunState, *, is_root: bool) -> dict[str, Any]:
    attempt = run.attempt
    found: dict[str, Any] = {
        "rank": rank,
        "device": state.device,
        "headline": failure.headline,
        "exit": _exit_text(failure.exit_code if failure.exit_code is not None else state.exit_code),
        "at": failure.at,
        "after_s": max(0.0, failure.at - attempt.began_at) if attempt is not None else 0.0,
        "is_communication": failure.is_communication,
    }
    if is_root:
        excerpt = failure.excerpt
        found["traceback"] = failure.traceback[-TRACEBACK_CHARACTERS:]
        found["excerpt"] = excerpt and {
            "where": excerpt.where,
            "first": excerpt.first,
            "lines": list(excerpt.lines),
            "failing": excerpt.failing,
        }
    return found
