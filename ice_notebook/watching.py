"""A run that a cell or a script waits for: the view it gets, and how an interrupt becomes a stop."""

from __future__ import annotations

import sys
from typing import Any

from ice_notebook import notebook
from ice_notebook.errors import OptionError
from ice_notebook.run import Run
from ice_notebook.state import Phase

_FLUSH_S = 0.1  # a text view prints from the main thread, at most this late


class Terminated(KeyboardInterrupt):
    """A signal that ends programs has come to the process that waits."""


def choose_ui(ui: str, *, waits: bool) -> str:
    """Return which view `ui` means here: widget, text or none.

    Raises:
        OptionError: a widget was asked for where there is no page, or lines in a notebook from a run that nobody waits for.
    """
    if ui == "text" and notebook.has_page() and not waits:
        raise OptionError.conflict(
            "ui=text", "background", "lines from behind would land in whichever cell is newest. Use ui=widget or none."
        )
    if ui == "widget" and not notebook.has_page():
        raise OptionError.refused("ui", ui, "there is no notebook page here; use text or none.")
    if ui == "auto":
        return "widget" if notebook.has_page() else "text"
    return ui


def open_view(run: Run, ui: str, *, waits: bool) -> Any:
    """Return the view of a run, shown and subscribed; None without one. Call it from the main thread."""
    if ui == "none":
        return None
    if ui == "text":
        from ice_notebook.text_view import TextView  # noqa: PLC0415

        view: Any = TextView(run, sys.stdout, prints=not waits, is_bounded=notebook.has_page())
    else:
        # Widgets take time to import, and need a page.
        from ice_notebook.widgets.run_panel import RunPanel  # noqa: PLC0415

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


def watch(run: Run, view: Any) -> None:
    """Wait for a run in the main thread.

    The first interrupt stops the run, a second one kills it.

    Raises:
        RunFailed: it failed; its report is displayed first.
        KeyboardInterrupt: it was stopped, by whatever way.
    """
    __tracebackhide__ = True
    interrupts = 0
    while True:
        try:
            _wait(run, view)
            break
        except KeyboardInterrupt as interrupt:
            if _is_echo_of_press(view):
                continue
            interrupts += 1
            reason = "terminated" if isinstance(interrupt, Terminated) else "interrupt"
            run.ask_to_stop(reason, is_urgent=interrupts > 1)
    if run.phase is Phase.SUCCEEDED:
        return
    if notebook.has_page():
        notebook.display(run)
    error: BaseException | None = run.exception()
    if error is None:
        error = KeyboardInterrupt("the run was stopped")
        # IPython draws an error by this when it has it: the frames in between are ours.
        error._render_traceback_ = lambda: ["KeyboardInterrupt: the run was stopped"]  # type: ignore[attr-defined]
    raise error


def _wait(run: Run, view: Any) -> None:
    flush = getattr(view, "flush", None)
    if flush is None:
        run.wait()
        return
    while not run.wait(_FLUSH_S):
        flush()
    flush()


def _is_echo_of_press(view: Any) -> bool:
    """Return whether an interrupt is the page's second way to say what its Stop button has said already."""
    return bool(getattr(view, "is_echo_of_press", bool)())
