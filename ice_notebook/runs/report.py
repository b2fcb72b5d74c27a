"""What happened in a run, as text, as the lines of an error and as a static page: pure functions of the plan, the state and last lines.

All three say the same whenever the same run ends the same way, so that saved notebooks can be compared: ranks in order, no times, pids,
ids, paths or addresses. A rank that lost its connection because another failed, and one that was stopped before it noticed, differ by
milliseconds only; both are told as stopped. What is left out here stands in the panel and on the `Run`.
"""

from __future__ import annotations

import html
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from ice_notebook.errors import format_size, join, printable
from ice_notebook.runs.safe_html import safe_html
from ice_notebook.runs.state import Attempt, Phase, RankPhase, RankState, RunState
from ice_notebook.wire.protocol import Excerpt, Failure, NodesGathering, Plan, StopReason, TracebackFrame, Value, replace
from ice_notebook.wire.token import VARIABLE

RANKS_SHOWN = 64
RESTARTS_SHOWN = 20
LOSSES_SHOWN = 8
VALUE_LINES = 20  # of a value's text
SENTENCE_CHARACTERS = 200  # of what is said of one rank among others
TAIL_LINES = 20
REPORT_BYTES = 100_000
VALUE_BYTES = 10_000
NEWLINE = "\n"  # no backslash in an f-string's expression before Python 3.12

STOP_WORDS = {
    StopReason.STOP: "stopped on request",
    StopReason.KILL: "killed on request",
    StopReason.INTERRUPT: "stopped by an interrupt",
    StopReason.TIMEOUT: "stopped by its timeout",
    StopReason.TERMINATED: "stopped by a signal to its launcher",
    StopReason.NO_READER: "stopped because nobody reads its output",
    StopReason.KERNEL_GONE: "stopped because the kernel ended",
    StopReason.SIGNAL: "stopped by a signal to its agent",
    StopReason.LEFT: "stopped because this node left the run",
    StopReason.FIRST_NODE_GONE: "stopped because the first node is gone",
    StopReason.RUN_ENDED: "stopped because the run ended on the other nodes",
}
_ENDED_WELL = "exit code 0"  # of a script that gave no value: a function's rank has one, or the reason why it was lost
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\r\n]*(?:\x07|\x1b\\|\x9c)"  # a title, the clipboard
    r"|\x1b[@-Z\\^_]"
)
_CELL = re.compile(r"Cell In\[\d+\]")
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # the last ones turn the order of what is read


# ---- sentences ----------------------------------------------------------------------------------------------------------------------


def title(plan: Plan, state: RunState) -> str:
    """Return a run in one line: `Run: succeeded · 2 ranks · cpu:0-1 · restarts 0/3`."""
    # What has begun is running for a reader: whether every rank has reported by the time that a cell is drawn is a matter of chance.
    phase = Phase.RUNNING.value if state.phase is Phase.STARTING else state.phase.value
    if state.gathering is not None and not state.phase.is_final:
        phase = "waiting for nodes"
    size = state.attempt.world_size if state.attempt else plan.world_size
    ranks = "1 rank" if size == 1 else f"{size} ranks"
    return f"Run: {phase} · {ranks} · {plan.devices} · restarts {state.restarts}/{plan.max_restarts}"


def join_command(plan: Plan, state: RunState) -> str:
    """Return the command with which other machines join a run, empty when none can. The token goes by the environment."""
    if plan.nodes is None or not plan.nodes.token or state.meeting is None or state.phase.is_final:
        return ""
    host, port = state.meeting
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"{VARIABLE}={plan.nodes.token} python -m ice_notebook join {where}"


def waiting_sentence(plan: Plan, state: RunState) -> str:
    """Return how many machines there are of those that a run still needs, empty when it has them or is of this machine alone."""
    if state.gathering is not None and not state.phase.is_final:
        return _gathering_sentence(state.gathering)
    if plan.nodes is None or state.meeting is None or state.attempts or state.phase is not Phase.STARTING:
        return ""
    here = len(state.present_nodes)
    if here >= plan.nodes.least:
        return ""
    return f"waiting for nodes: {here} of {plan.nodes.least} {'is' if here == 1 else 'are'} here"


def _gathering_sentence(found: NodesGathering) -> str:
    if found.problem:
        return f"waiting for nodes: {found.where} is not reached yet: {plain(found.problem)}"
    here = len(found.here)
    wanted = f"{found.least}" if here < found.least else f"up to {found.most}"
    who = f" ({plain(join(found.here, 'and'))})" if found.here else ""
    return f"waiting for nodes at {found.where}: {here} of {wanted} {'is' if here == 1 else 'are'} here{who}"


def reach_sentence(state: RunState) -> str:
    """Return advice when no other machine can reach a run's port, empty otherwise."""
    host = state.meeting[0] if state.meeting is not None else ""
    if not host.startswith("127.") and host != "::1":
        return ""
    return f"only this machine reaches {host}: give master_addr an address of it to let others in"


def failure_sentence(rank: int, failure: Failure) -> str:
    """Return how a rank failed, and where: `rank 1: ValueError: bad loss (Cell In[3], line 4)`."""
    where = _place(failure)
    headline = plain(failure.headline)
    return f"rank {rank}: {headline} ({where})" if where else f"rank {rank}: {headline}"


def rank_sentence(rank: RankState, root: int | None) -> str:
    """Return what became of a rank when another, `root`, had failed, or when the run was stopped: `stopped because rank 1 failed`."""
    if rank.phase is RankPhase.RETURNED:
        if rank.value is None:
            return plain(rank.lost) or _ENDED_WELL
        return f"returned {_one_line(rank.value.text)}"
    if rank.failure is not None and not is_echo(rank, root):
        also = "failed" if root is None else "also failed"
        return f"{also}: {_one_line(failure_sentence(rank.rank, rank.failure).partition(': ')[2])}"
    if rank.phase is RankPhase.STOPPED or rank.failure is not None:
        return "stopped" if root is None else f"stopped because rank {root} failed"
    return str(rank.phase.value)


def cause_of(attempt: Attempt) -> tuple[int, Failure] | None:
    """Return the rank whose failure is the cause of the others', and that failure; None when no rank of the attempt failed."""
    failed = {number: rank.failure for number, rank in attempt.ranks.items() if rank.failure is not None}
    if attempt.root is not None and attempt.root in failed:
        return attempt.root, failed[attempt.root]
    # The agent did not live to name one.
    first = min(failed, key=lambda number: (failed[number].is_communication, failed[number].at, number), default=None)
    return None if first is None else (first, failed[first])


def headline(plan: Plan, state: RunState) -> str:
    """Return why a run did not succeed, in one line: the failure of its root rank, or what ended it when that was no rank."""
    cause = _cause(state)
    if cause is not None:
        # The attempt's failure was settled, and the run ended for a reason of its own: the ranks could not be started again, say.
        is_settled = state.attempt is not None and state.attempt.root is not None
        return failure_sentence(*cause) + (f"; then {plain(state.end_reason)}" if is_settled and state.end_reason else "")
    return stop_words(plan, state) or plain(state.end_reason) or f"{state.phase.value}, and no rank reported a reason"


def stop_words(plan: Plan, state: RunState) -> str:
    """Return why a run was stopped: `stopped on request`; nothing when it was not."""
    # An agent that was stopped before it could say that it is being stopped gives the reason with the run's end.
    reason = state.stop_reason or next((reason for reason in StopReason if reason.value == state.end_reason), None)
    if reason is StopReason.TIMEOUT and plan.timeout is not None:
        return f"stopped after timeout={plan.timeout:g} s"
    return STOP_WORDS[reason] if reason is not None else ""


def restart_sentences(state: RunState) -> list[str]:
    """Return one line for each restart: `restart 1: rank 2: ValueError: bad loss`, the newest ones when there are many."""
    lines = []
    for attempt, following in zip(state.attempts, state.attempts[1:], strict=False):
        cause = cause_of(attempt)
        if attempt.ended_by:
            lines.append(f"attempt {following.number + 1}: {_one_line(attempt.ended_by)}")
        elif cause is not None:
            lines.append(f"restart {following.restart_count}: {_one_line(failure_sentence(*cause))}")
    hidden = len(lines) - RESTARTS_SHOWN
    return [f"… {hidden} earlier restarts", *lines[hidden:]] if hidden > 0 else lines


def loss_sentences(state: RunState) -> list[str]:
    """Return what is missing in the ranks' log files: `rank 0: 7.2 MiB of its output is missing in its log file: No space left on device`."""
    lines = []
    for attempt in state.attempts:
        of = f" of attempt {attempt.number + 1}" if len(state.attempts) > 1 else ""
        for number, rank in sorted(attempt.ranks.items()):
            if rank.lost_output_bytes:
                lines.append(f"rank {number}{of}: {loss_sentence(rank)}")
    hidden = len(lines) - LOSSES_SHOWN
    return [*lines[:LOSSES_SHOWN], f"… and output of {hidden} more ranks"] if hidden > 0 else lines


def loss_sentence(rank: RankState) -> str:
    """Return what is missing in a rank's log file."""
    return f"{format_size(rank.lost_output_bytes)} of its output is missing in its log file: {plain(rank.lost_output_why)}"


def plain(text: str) -> str:
    """Return a text that every page and terminal can show: without colours and without characters that steer a terminal."""
    return _CONTROLS.sub("", _ESCAPES.sub("", printable(text)))


def _cause(state: RunState) -> tuple[int, Failure] | None:
    """Return the failure that the run ended by; a run that was stopped, or whose time was over, ended by none."""
    if (
        state.attempt is None
        or state.phase is not Phase.FAILED
        or state.stop_reason is StopReason.TIMEOUT
        or state.attempt.ended_by
    ):
        return None
    return cause_of(state.attempt)


def root_of(state: RunState) -> int | None:
    """Return the rank whose failure the run ended by; None when it ended by none."""
    cause = _cause(state)
    return None if cause is None else cause[0]


def _place(failure: Failure) -> str:
    if failure.excerpt is not None:
        return f"{_unnumbered(failure.excerpt.where)}, line {failure.excerpt.failing}"
    users = [frame for frame in failure.frames if frame.is_users and frame.line > 0]
    return f"{_unnumbered(users[-1].where)}, line {users[-1].line}" if users else ""


def _unnumbered(where: str) -> str:
    """Return a place without the number of a cell, which is that of its execution: the next one has another, and nbval's cells have none.

    The error that the cell draws has it; what is stored and compared does not.
    """
    return "cell" if _CELL.fullmatch(where) else where


def is_echo(rank: RankState, root: int | None) -> bool:
    """Return whether a rank's failure came of another's, or of being stopped."""
    failure = rank.failure
    return failure is not None and rank.rank != root and (failure.is_communication or failure.type_name == "KeyboardInterrupt")


def shown_phase(rank: RankState, root: int | None) -> RankPhase:
    """Return what is said of a rank: one whose failure came of that of `root` was stopped by it."""
    return RankPhase.STOPPED if is_echo(rank, root) else rank.phase


def _one_line(text: str) -> str:
    first, _, rest = plain(text[: 10 * SENTENCE_CHARACTERS]).strip().partition("\n")
    return f"{first[: SENTENCE_CHARACTERS - 1]}…" if rest or len(first) > SENTENCE_CHARACTERS else first


def _shown_ranks(state: RunState) -> Iterator[RankState]:
    for number in sorted(state.ranks)[:RANKS_SHOWN]:
        yield state.ranks[number]


def _more_ranks(state: RunState) -> list[str]:
    hidden = len(state.ranks) - RANKS_SHOWN
    return [f"… {hidden} more ranks"] if hidden > 0 else []


def _excerpt_lines(excerpt: Excerpt) -> list[str]:
    lines = []
    for number, text in enumerate(excerpt.lines, excerpt.first):
        gutter = f"{number:>7}" if number != excerpt.failing else f"> {number}".rjust(7, "-")
        lines.append(f"{gutter} {plain(text)}".rstrip())
    return lines


# ---- text ---------------------------------------------------------------------------------------------------------------------------


def format_text(plan: Plan, state: RunState) -> str:
    """Return the text of a run: its title, then, once it has ended, what became of every rank.

    While it runs only the title is given: the rest would differ from one look to the next.
    """
    return "\n".join([title(plan, state), *(_text_lines(plan, state) if state.phase.is_final else ())])


def _text_lines(plan: Plan, state: RunState) -> Iterator[str]:
    yield from restart_sentences(state)
    cause = _cause(state)
    root = root_of(state)
    if state.phase is not Phase.SUCCEEDED:
        yield headline(plan, state)
    if cause is not None and cause[1].excerpt is not None:
        yield from _excerpt_lines(cause[1].excerpt)
    for rank in _shown_ranks(state):
        if state.phase is Phase.SUCCEEDED:
            yield from _value_lines(rank)
        elif rank.rank != root:
            yield _with_rank(rank, rank_sentence(rank, root))
        if rank.note:
            yield f"rank {rank.rank}: {plain(rank.note)}"
    yield from _more_ranks(state)
    yield from loss_sentences(state)


def _value_lines(rank: RankState) -> list[str]:
    if rank.value is None:
        return [_with_rank(rank, plain(rank.lost) or (_ENDED_WELL if rank.phase is RankPhase.RETURNED else rank.phase.value))]
    start = f"rank {rank.rank}: "
    lines = plain(rank.value.text).split("\n")
    if len(lines) > VALUE_LINES:
        lines[VALUE_LINES:] = [f"… {len(lines) - VALUE_LINES} more lines"]
    # The lines of a tensor stay below each other.
    return [start + lines[0], *(" " * len(start) + line for line in lines[1:])]


def _with_rank(rank: RankState, sentence: str) -> str:
    return sentence if re.search(rf"\brank {rank.rank}\b", sentence) and rank.lost else f"rank {rank.rank}: {sentence}"


# ---- the cell's error ---------------------------------------------------------------------------------------------------------------


def failure_lines(plan: Plan, state: RunState) -> tuple[str, list[str]]:
    """Return the message of a failed run's exception, and the lines that the cell shows below it.

    The lines are the root rank's traceback with the cell's own source, then a line for each other rank, then the restarts used.
    """
    cause = _cause(state)
    lines: list[str] = []
    if cause is not None:
        root, failure = cause
        if failure.frames:
            lines += ["", f"Traceback of rank {root} (most recent call last):", *_frame_lines(failure), plain(failure.headline)]
        elif failure.excerpt is not None:
            lines += ["", f"{failure.excerpt.where}, line {failure.excerpt.failing}", *_excerpt_lines(failure.excerpt)]
    others = _others(state)
    lines += ["", *others] if others else []
    if plan.max_restarts:
        lines += ["", f"restarts used: {state.restarts} of {plan.max_restarts}", *restart_sentences(state)]
    if losses := loss_sentences(state):
        lines += ["", *losses]
    return headline(plan, state), lines


def _others(state: RunState) -> list[str]:
    root = root_of(state)
    return [_with_rank(rank, rank_sentence(rank, root)) for rank in _shown_ranks(state) if rank.rank != root] + _more_ranks(state)


def _frame_lines(failure: Failure) -> Iterator[str]:
    excerpt = failure.excerpt
    shown = next((f for f in reversed(failure.frames) if excerpt and (f.where, f.line) == (excerpt.where, excerpt.failing)), None)
    for frame in failure.frames:
        yield f"  {_frame_title(frame)}"
        if frame is shown and excerpt is not None:
            yield from _excerpt_lines(excerpt)
        elif frame.source and frame.is_users:
            yield f"    {plain(frame.source)}"


def _frame_title(frame: TracebackFrame) -> str:
    if frame.line <= 0:  # the gap in a recursion
        return frame.where
    where = f"{frame.where}, line {frame.line}" if frame.is_users else f"{frame.where}:{frame.line}"
    return plain(where if frame.function in {"", "<module>"} else f"{where}, in {frame.function}")


# ---- static page --------------------------------------------------------------------------------------------------------------------

# The first rule hides the report while a panel lives in the same output area. The second hides JupyterLab's "Error displaying widget" for
# a panel that does not: that message alone puts the widget's class on the output node itself. `:has()` inside `:has()` would make a rule
# void, and a rule by adjacency would hide what the user printed in between.
_STYLE = """<style>
.jp-OutputArea:has(.ice-live) > .jp-OutputArea-child:has(.ice-report),
.output:has(.ice-live) > .output_area:has(.ice-report) { display: none }
.jp-OutputArea:has(.ice-report) > .jp-OutputArea-child > .jp-OutputArea-output.jupyter-widgets { display: none }
.ice-report { font-size: var(--jp-ui-font-size1, 13px); line-height: 1.4; color: inherit }
.ice-report .ice-title { font-weight: 600; margin-bottom: 4px }
.ice-report .ice-head { font-weight: 600; margin: 8px 0 2px }
.ice-report .ice-quiet { opacity: 0.75 }
.ice-report table { border-collapse: collapse; margin: 4px 0; font-size: inherit }
.ice-report th, .ice-report td { text-align: left; padding: 2px 12px 2px 6px; color: inherit }
.ice-report pre { margin: 2px 0; padding: 4px 6px; background: transparent; color: inherit; white-space: pre-wrap;
  overflow-wrap: anywhere; font-family: var(--jp-code-font-family, monospace); font-size: var(--jp-code-font-size, 12px);
  border-left: 2px solid var(--jp-border-color2, rgba(128, 128, 128, 0.4)) }
.ice-report .ice-error { color: var(--jp-error-color1, #d84343); font-weight: 600 }
.ice-report .ice-failing { display: inline-block; min-width: 100%; background: rgba(211, 47, 47, 0.16) }
.ice-report details { margin: 4px 0 }
.ice-report summary { cursor: pointer }
</style>"""
# The bytes that each part may take; together with the style and the frame around them they stay below REPORT_BYTES.
_TITLE_BYTES, _RESTART_BYTES, _FAILURE_BYTES, _TABLE_BYTES, _RESULT_BYTES, _TAIL_BYTES = (
    1_000,
    6_000,
    16_000,
    12_000,
    32_000,
    22_000,
)
_LINE_BYTES = 1_000


def format_html(plan: Plan, state: RunState, tails: Mapping[int, Sequence[str]]) -> str:
    """Return a run as a static page that hides itself while a live panel stands in the same output, at most 100 kB.

    `tails` are the last lines of each rank's output, finished ones only. Everything is escaped; what values drew of themselves is
    rewritten (`safe_html`), so that nothing of a rank's can run or reach out of its place.
    """
    parts = [_STYLE, _element("div", title(plan, state).replace(" · ", f" · {plan.name} · ", 1), "ice-title", _TITLE_BYTES)]
    if state.phase.is_final:
        parts += _within([_element("div", line, "ice-quiet", _LINE_BYTES) for line in restart_sentences(state)], _RESTART_BYTES)
        parts += _within(_failure_html(plan, state), _FAILURE_BYTES)
        parts += [_element("div", line, "ice-error", _LINE_BYTES) for line in loss_sentences(state)]
        parts += _table_html(state)
        parts += _within(_result_html(state), _RESULT_BYTES)
        parts += _within(_tail_html(state, tails), _TAIL_BYTES)
    else:
        parts.append(
            '<div class="ice-quiet">The run was still going on when this was drawn; the run shows itself again in any later cell.</div>'
        )
    return f'<div class="ice-report">{"".join(parts)}</div>'


def _table_html(state: RunState) -> list[str]:
    root = root_of(state)
    rows = []
    for rank in _shown_ranks(state):
        cells = (str(rank.rank), rank.device, shown_phase(rank, root).value, _exit_words(state, rank, root))
        rows.append("<tr>" + "".join(f"<td>{_escaped(cell, 200)}</td>" for cell in cells) + "</tr>")
    if not rows:
        return []
    head = "<tr><th>rank</th><th>device</th><th>state</th><th>exit</th></tr>"
    shown = _within(rows, _TABLE_BYTES, more=lambda hidden: f'<tr><td colspan="4">… {hidden} more ranks</td></tr>')
    return ["<table>", head, *shown, "</table>", *(f'<div class="ice-quiet">{line}</div>' for line in _more_ranks(state))]


def _exit_words(state: RunState, rank: RankState, root: int | None) -> str:
    """Return a rank's exit code, or its note. How a rank was stopped, by which signal, is a matter of chance and is not told."""
    if rank.note:
        return plain(rank.note)
    failed = rank.failure is not None and not is_echo(rank, root)
    code = rank.exit_code
    if failed and rank.failure is not None and rank.failure.exit_code is not None:
        code = rank.failure.exit_code  # a rank that raised may be ended by us while it still prints its traceback
    if code is None or not (failed or state.phase is Phase.SUCCEEDED):
        return ""
    try:
        return str(code) if code >= 0 else signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _failure_html(plan: Plan, state: RunState) -> list[str]:
    if state.phase is Phase.SUCCEEDED:
        return []
    parts = [_element("div", headline(plan, state), "ice-error", _LINE_BYTES)]
    cause = _cause(state)
    if cause is not None:
        parts += _place_html(cause[1])
    return parts + [_element("div", line, "ice-quiet", _LINE_BYTES) for line in _others(state)]


def _place_html(failure: Failure) -> Iterator[str]:
    excerpt = failure.excerpt
    if excerpt is not None:
        lines = [_escaped(line, _LINE_BYTES) for line in _excerpt_lines(excerpt)]
        marked = [
            f'<span class="ice-failing">{line}</span>' if n == excerpt.failing else line
            for n, line in enumerate(lines, excerpt.first)
        ]
        yield f"<pre>{NEWLINE.join(marked)}</pre>"
    if failure.frames:
        text = "\n".join(_frame_title(replace(frame, where=_unnumbered(frame.where))) for frame in failure.frames)
        yield f"<details><summary>called from</summary>{_element('pre', text, '', 5 * _LINE_BYTES)}</details>"


def _result_html(state: RunState) -> list[str]:
    returned = [rank for rank in _shown_ranks(state) if rank.phase is RankPhase.RETURNED]
    limit = min(VALUE_BYTES, max(200, (_RESULT_BYTES - 200 * len(returned)) // max(1, len(returned))))
    return [f"{_result_head(rank)}{_value_html(rank.value, limit) if rank.value else ''}" for rank in returned]


def _result_head(rank: RankState) -> str:
    if rank.value is None:
        return _element("div", _with_rank(rank, rank.lost or "returned"), "ice-head", _LINE_BYTES)
    return _element("div", f"rank {rank.rank} returned {rank.value.type_name}", "ice-head", 150)


def _value_html(value: Value, limit: int) -> str:
    # A <div>, and not a cell of a table: nothing that a value may hold can close it.
    drawn = safe_html(value.html) if value.html else ""
    if drawn and len(drawn.encode()) <= limit:
        return f"<div>{drawn}</div>"
    return _element("pre", value.text, "", limit)


def lines_wanted(rank: RankState) -> int:
    """Return how many last lines of a rank `format_html` is to be given: those that it shows, and the traceback that it leaves out."""
    return TAIL_LINES + (rank.failure.traceback.count(NEWLINE) + 1 if rank.failure is not None else 0)


def _tail_html(state: RunState, tails: Mapping[int, Sequence[str]]) -> list[str]:
    tails = {
        rank: _without_traceback(lines, known.failure)
        if (known := state.ranks.get(rank)) is not None and known.failure is not None
        else lines
        for rank, lines in tails.items()
    }
    ranks = [rank for rank in sorted(tails) if tails[rank]][:RANKS_SHOWN]
    parts = []
    for rank in ranks:
        room = (_TAIL_BYTES - 100 * len(ranks)) // len(ranks)
        lines = _within([_escaped(line, room // 2) for line in reversed(tails[rank][-TAIL_LINES:])], room - 60, more=lambda _: "…")
        parts.append(f"<details><summary>last lines of rank {rank}</summary><pre>{NEWLINE.join(reversed(lines))}</pre></details>")
    return parts


def _without_traceback(lines: Sequence[str], failure: Failure) -> Sequence[str]:
    """Return what a rank printed before the traceback of its failure.

    The page shows the cause in its own words. The traceback has paths and ports in it, and whether a rank that was stopped because of
    another had the time to print one is a matter of chance.
    """
    first, *rest = _comparable(failure.traceback.rstrip().split(NEWLINE))
    have = _comparable(lines)
    for start in range(len(have) - len(rest), -1, -1):
        if rest and have[start : start + len(rest)] == rest:
            # The first line may stand behind a line that had not ended, or was drawn over a progress bar and is not among the lines.
            begins = start > 0 and have[start - 1].endswith(first)
            before = [lines[start - 1].rstrip().removesuffix(first)] if begins else []
            return [*lines[: start - begins], *(line for line in before if line)]
    return lines


def _comparable(lines: Iterable[str]) -> list[str]:
    return [" ".join(plain(line[:1000]).split()) for line in lines]


def _element(tag: str, text: str, kind: str, limit: int) -> str:
    start = f'<{tag} class="{kind}">' if kind else f"<{tag}>"
    return f"{start}{_escaped(text, limit)}</{tag}>"


def _escaped(text: str, limit: int) -> str:
    """Return a text as HTML of at most so many bytes, cut between two characters."""
    text = plain(text[: 4 * limit])
    whole = html.escape(text[: limit + 1])
    if len(text) <= limit and len(whole.encode()) <= limit:
        return whole
    low, high = 0, min(len(text), limit)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(html.escape(text[:middle]).encode()) <= limit - 3 else (low, middle - 1)
    return html.escape(text[:low]) + "…"


def _within(
    parts: Iterable[str], limit: int, *, more: Callable[[int], str] = lambda n: f'<div class="ice-quiet">… {n} more</div>'
) -> list[str]:
    """Return as many whole parts as fit, and what `more` says of the number of others."""
    parts = list(parts)
    room = limit - 60  # for that
    for index, part in enumerate(parts):
        room -= len(part.encode()) + 1
        if room < 0:
            return [*parts[:index], more(len(parts) - index)]
    return parts
