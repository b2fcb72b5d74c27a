"""A run that a cell or a script waits for: the view it gets, and how an interrupt becomes a stop."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ice_notebook.errors import OptionError
from ice_notebook.host import notebook
from ice_notebook.host.interrupts import Interrupts, stopped
from ice_notebook.kernel.run import Run
from ice_notebook.runs.state import Phase
from ice_notebook.ui.outlet import is_same_place
from ice_notebook.wire.protocol import StopReason

RELAYED = (signal.SIGUSR1, signal.SIGUSR2)  # they mean what a program makes of them
_FLUSH_S = 0.1  # a text view prints from the main thread, at most this late


@dataclass(frozen=True)
class Ui:
    """How a run is shown."""

    kind: str  # widget, text or none
    note: str = ""  # said first: why there is no panel where one would be expected
    is_asked_for: bool = False  # by name


def choose_ui(ui: str, *, waits: bool) -> Ui:
    """Return which view `ui` means here.

    Raises:
        OptionError: a widget was asked for where there is no page, or lines in a notebook from a run that nobody waits for.
    """
    if ui == "text" and notebook.has_page() and not waits:
        raise OptionError.conflict(
            "ui=text", "background", "lines from behind would land in whichever cell is newest. Use ui=widget or none."
        )
    if ui == "widget" and not notebook.has_page():
        raise OptionError.refused("ui", ui, "there is no notebook page here; use text or none.")
    if ui != "auto":
        return Ui(ui, is_asked_for=True)
    if not notebook.has_page():
        return Ui("text")
    from ice_notebook.ui.widgets.kernel import why_no_panel  # noqa: PLC0415 - of use in a notebook only

    why = why_no_panel()
    return _without_panel(why, waits=waits) if why else Ui("widget")


def _without_panel(why: str, *, waits: bool) -> Ui:
    """Return how a run is shown in a notebook that cannot have the panel."""
    if waits:
        return Ui("text", f"run: shown as lines, because {why}. ui=widget shows the panel all the same.")
    return Ui("none", f"run: not shown, because {why}. ui=widget shows the panel all the same.")


def open_view(run: Run, ui: Ui, *, waits: bool, shown: Collection[int] | None = None) -> Any:
    """Return the view of a run, shown and subscribed; None without one. Call it from the main thread.

    Lines are shown of the local ranks `shown`, of all unless they are given.
    """
    if ui.kind == "widget":
        try:
            # Widgets take time to import, and need a page.
            from ice_notebook.ui.widgets.run_panel import RunPanel  # noqa: PLC0415
        except ImportError as error:
            if ui.is_asked_for:
                raise
            ui = _without_panel(f"the packages for widgets cannot be imported ({error})", waits=waits)
    if ui.note:
        print(ui.note)  # noqa: T201 - in the cell, where the panel would be
    if ui.kind == "none":
        return None
    if ui.kind == "text":
        if sys.stdout is None:  # closed by whoever has started the program
            return None
        from ice_notebook.ui.text_view import TextView  # noqa: PLC0415

        is_apart = run.plan.wiring.is_apart and sys.stderr is not None and not is_same_place(sys.stdout, sys.stderr)
        view: Any = TextView(
            run,
            sys.stdout,
            errors=sys.stderr if is_apart else None,
            prints=not waits,
            is_bounded=notebook.has_page(),
            shown=shown,
            on_resize=run.tell_size,
        )
    else:
        view = RunPanel(run, cell_waits=waits)
        run.panel = view
        notebook.display_before(Run, show_panel)
        show_panel(run)
    run.subscribe(view)
    return view


def show_panel(run: Run) -> None:
    """Display the panel of a run that has one, unless this cell shows it already. Its views in all cells are the same panel."""
    cell = notebook.current_cell()
    if run.panel is not None and cell not in run.panel.cells:
        run.panel.cells.add(cell)
        notebook.display(run.panel)


def watch(run: Run, view: Any, interrupts: Interrupts) -> None:
    """Wait for a run in the main thread.

    The first interrupt stops the run, a second one kills it. Another signal that ends programs stops it too, and is no second press, whether
    it comes after an interrupt or again: a scheduler sends two.

    Raises:
        RunFailed: it failed; its report is displayed first.
        KeyboardInterrupt: it was stopped, by whatever way.
        BrokenPipeError: it was stopped because nobody reads what it shows.
    """
    __tracebackhide__ = True
    run.when_done(interrupts.wake)
    prints = hasattr(view, "flush")
    presses, wait_s = 0, _FLUSH_S
    while not run.done():
        number = interrupts.wait(wait_s if prints else None)
        if number == signal.SIGINT:
            presses += not _is_echo_of_press(view)
        if number:
            _obey(run, number, presses)
        if prints:
            wait_s = 0.0 if _flush(run, view) and not view.waits else _FLUSH_S
    if prints:
        _flush_rest(run, view, interrupts)
    if run.phase is Phase.SUCCEEDED:
        return
    if notebook.has_page():
        notebook.display(run)
    if run.state.stop_reason is StopReason.NO_READER and not any(map(_ends, interrupts.arrived)):
        raise BrokenPipeError(errno.EPIPE, "nobody reads what the run shows")
    raise run.exception() or stopped("the run was stopped")


def _flush(run: Run, view: Any) -> bool:
    """Print what is new, and return whether there is more. Without a reader the run is stopped, unless it is already."""
    has_more = bool(view.flush(_FLUSH_S))
    if view.has_lost_reader and not run.state.stop_reason:
        run.ask_to_stop(StopReason.NO_READER, is_urgent=False)
    return has_more


def _flush_rest(run: Run, view: Any, interrupts: Interrupts) -> None:
    """Print what is left of a run that is over, as long as a slow reader takes for it, or until a signal says that it is enough."""
    while _flush(run, view):
        if view.fault:
            run.unshown = view.fault
            return
        view.wait(_FLUSH_S)
        if _ends(interrupts.wait(0.0)):
            return


def _ends(number: int) -> bool:
    """Return whether a signal ends programs."""
    return number != 0 and number not in RELAYED


def _obey(run: Run, number: int, presses: int) -> None:
    """Do what a signal says; `presses` counts the interrupts so far."""
    if number in RELAYED:
        run.relay(number)
    elif number == signal.SIGINT:
        if presses:
            run.ask_to_stop(StopReason.INTERRUPT, is_urgent=presses > 1)
    else:
        run.ask_to_stop(StopReason.TERMINATED, is_urgent=False, by=number)


def _is_echo_of_press(view: Any) -> bool:
    """Return whether an interrupt is the page's second way to say what its Stop button has said already."""
    return bool(getattr(view, "is_echo_of_press", bool)())
