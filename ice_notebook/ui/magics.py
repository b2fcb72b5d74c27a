"""`%%elastic_launch`: the text of a cell and its magic's line to a launch, and tab completion of that line. `%elastic_devices`, `%elastic_standby`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any

from IPython.core.magic import Magics, line_cell_magic, line_magic, magics_class, no_var_expand

from ice_notebook.devices import holders, machine, picked
from ice_notebook.errors import CellError, CellSyntaxError, IceNotebookError, OptionError, ScriptError
from ice_notebook.host import notebook
from ice_notebook.host.interrupts import stopped
from ice_notebook.host.ipython_versions import Completions, add_completer, output_can_be_silenced, remove_completer
from ice_notebook.kernel.planning import check_platform, make_preparation
from ice_notebook.kernel.pool import pool
from ice_notebook.kernel.run import Run
from ice_notebook.options.help_pages import help_text
from ice_notebook.options.launch_options import TABLE, LaunchOptions
from ice_notebook.options.line import asks_for_help, complete_line, read_launch_line, read_line, read_value, split_words, wants_help
from ice_notebook.options.table import Surface
from ice_notebook.tasks import cell as cells
from ice_notebook.tasks.cell import BodyTask, Cell, FunctionTask
from ice_notebook.tasks.scripts import ScriptTask, read_script, scripts_here
from ice_notebook.ui.launcher import ElasticLauncher, read_call
from ice_notebook.ui.widgets.kernel import can_draw
from ice_notebook.ui.widgets.picker_state import listing

_MAGIC = "%%elastic_launch"
_LINE = "%elastic_launch"
_DEVICES = "%elastic_devices"
_DEVICES_HELP = """\
%elastic_devices [DEVICES | off]

Choose the devices of launches that name none: of %%elastic_launch, and of ElasticLauncher in this
notebook. Their runs say so.

    %elastic_devices               show the picker; what is picked in it counts from then on, and
                                   until something is picked, launches use auto
    %elastic_devices cuda:0,1      set devices without it, in any form that devices= takes
    %elastic_devices cuda:free:2   two GPUs that nobody uses, found anew at each launch
    %elastic_devices picker        let a picker of your own decide
    %elastic_devices off           forget it: such launches use auto again"""


_STANDBY = "%elastic_standby"
_STANDBY_HELP = """\
%elastic_standby [N | auto | off]

Ranks that are up, have imported torch and wait make the next launch instant. After a launch as many
stand by as it had; they end 10 minutes after the last one, and with the notebook.

    %elastic_standby         say what stands by
    %elastic_standby 4       have four ranks stand by from now on, before the first launch too
    %elastic_standby auto    as many as the last launch had (the default)
    %elastic_standby off     end them, and keep none"""


@magics_class
class ElasticMagics(Magics):
    """The magics of ice_notebook."""

    @no_var_expand
    @output_can_be_silenced
    @line_cell_magic
    def elastic_launch(self, line: str, cell: str | None = None) -> Run | None:
        __tracebackhide__ = True
        place = Surface.LINE if cell is None else Surface.CELL
        if wants_help(line) or _asks_for_help(line, place):
            print(help_text(place))  # noqa: T201 - what was asked for
            return None
        try:
            return self._launch_line(line) if cell is None else self._launch_cell(line, cell)
        except IceNotebookError as error:
            raise error.with_traceback(None) from error.__cause__
        except KeyboardInterrupt as interrupt:
            from ice_notebook.runs import tracebacks  # noqa: PLC0415 - nobody else here needs it

            # It has hit us while the line was read, say: those frames mean nothing to the user.
            if not hasattr(interrupt, "_render_traceback_") and not tracebacks.has_users_frames(interrupt):
                raise stopped("the launch was interrupted") from None
            raise

    elastic_launch.__doc__ = f"{help_text(Surface.CELL)}\n\n{help_text(Surface.LINE)}"

    @no_var_expand
    @output_can_be_silenced
    @line_magic
    def elastic_devices(self, line: str) -> Any:
        __tracebackhide__ = True
        return _answer(line, _DEVICES_HELP, self._set_devices)

    elastic_devices.__doc__ = _DEVICES_HELP

    @no_var_expand
    @output_can_be_silenced
    @line_magic
    def elastic_standby(self, line: str) -> None:
        __tracebackhide__ = True
        _answer(line, _STANDBY_HELP, self._set_standby)

    elastic_standby.__doc__ = _STANDBY_HELP

    def _set_standby(self, text: str) -> None:
        """Do what the line says, and say how it stands."""
        if text:
            wanted = read_value(TABLE.options["standby"], text, self.shell.user_ns)
            pool().default = wanted
            if wanted == "off":
                pool().stop()
            elif wanted != "auto":
                check_platform()
                pool().prepare(make_preparation(wanted))
        print(pool().describe())  # noqa: T201 - the answer to a command

    def _set_devices(self, text: str) -> Any:
        """Set the devices of launches that name none, and return the picker that is to be shown, if one is."""
        if not text and not can_draw():
            here = machine.inventory()
            print("\n".join(listing(here, holders.look(here.visible))))  # noqa: T201 - what was asked for
            return None
        from ice_notebook.ui.widgets.device_picker import DevicePicker  # noqa: PLC0415 - widgets take time to import

        before = picked.chosen()
        chosen = self._devices_meant(text, before, DevicePicker)
        picked.choose(chosen)
        for picker in (before, chosen):
            if isinstance(picker, DevicePicker):
                picker.refresh()  # it shows whether it is the one that counts
        if isinstance(chosen, DevicePicker):
            return chosen
        print(f"Launches that name no devices use {'auto' if chosen is None else chosen}.")  # noqa: T201 - the answer to a command
        return None

    def _devices_meant(self, text: str, before: Any, picker: type) -> Any:
        """Return the picker or the devices of a line; None forgets them. `before` is what was set until now."""
        if not text:
            return before if isinstance(before, picker) else picker()
        if text in {"off", "none"}:
            return None
        named = self.shell.user_ns.get(text)
        return named if isinstance(named, picker) else read_value(TABLE.options["devices"], text, self.shell.user_ns)

    def _launch_cell(self, line: str, text: str) -> Run:
        __tracebackhide__ = True
        asked = read_line(line, TABLE, self.shell.user_ns, Surface.CELL)
        launcher = ElasticLauncher.of(LaunchOptions.of(asked, Surface.CELL))
        return self._launch(launcher, *self._task(self._read_cell(text), launcher))

    def _launch_line(self, line: str) -> Run:
        __tracebackhide__ = True
        asked, words = read_launch_line(line, TABLE, self.shell.user_ns, Surface.LINE)
        options = LaunchOptions.of(asked, Surface.LINE)
        named = self._named_function(options, words)
        launcher = ElasticLauncher.of(options, is_for_script=named is None)
        if named is not None:
            return self._launch(launcher, *self._call(named, launcher))
        is_file = not (options.module or options.no_python)
        words = [os.path.expanduser(words[0]), *words[1:]] if words else words  # no shell has done it
        if is_file and words and words[0].isidentifier() and not os.path.exists(words[0]):
            known = [name for name, value in self.shell.user_ns.items() if callable(value)]
            raise ScriptError.missing_name(words[0], os.getcwd(), [*known, *scripts_here(words[0]), *(each.name for each in TABLE)])
        task = read_script(options, words, module_path=[entry for entry in sys.path if entry])
        return self._launch(launcher, task, task.name)

    def _named_function(self, options: LaunchOptions, words: list[str]) -> str | None:
        """Return the name of the notebook's function that a line launches; None when it launches a script."""
        if options.function is not None:
            if words:
                raise ScriptError.function_and_script(options.function, words[0])
            return options.function
        if not words or options.module or options.no_python or options.run_path:
            return None
        if not words[0].isidentifier() or not callable(self.shell.user_ns.get(words[0])):
            return None
        if words[1:]:
            raise ScriptError.function_arguments(words[0], words[1])
        return words[0]

    def _launch(self, launcher: ElasticLauncher, task: FunctionTask | BodyTask | ScriptTask, name: str) -> Run:
        __tracebackhide__ = True
        options = launcher.options

        def bind(run: Run) -> None:
            if options.output is not None:
                self.shell.user_ns[options.output] = run

        return launcher.launch(task, name, waits=not options.background, on_run=bind)

    def _read_cell(self, text: str) -> Cell:
        """Return the cell under the name and the line numbers that a person sees."""
        source = "\n" * notebook.lines_above(text) + self.shell.transform_cell(text)
        label = notebook.running_cell()
        try:
            file_name = notebook.name_cell(source, f"{_MAGIC}\n{text}")
        except UnicodeEncodeError as error:  # half a surrogate pair: no source of Python's can hold it
            raise CellSyntaxError.of(SyntaxError(str(error)), label) from None
        return cells.read_cell(source, file_name, label, flags=self.shell.compile.flags)

    def _task(self, cell: Cell, launcher: ElasticLauncher) -> tuple[FunctionTask | BodyTask, str]:
        __tracebackhide__ = True
        options = launcher.options
        name = options.function or cell.last_function
        if name is None:
            if options.args is not None or options.kwargs is not None:
                raise CellError.body_arguments()
            cells.check_body(cell)
            return cell.body_task({"launcher": launcher, **self.shell.user_ns}), "cell"
        cells.check_definition(cell)
        cell.define(self.shell.user_ns)
        return self._call(name, launcher)

    def _call(self, name: str, launcher: ElasticLauncher) -> tuple[FunctionTask, str]:
        """Return the call of a function of the notebook, by the arguments that the options give, as a task and as a person writes it."""
        options = launcher.options
        function = self._function(name)
        args, kwargs = options.args or (), options.kwargs or {}
        if options.args is None and options.kwargs is None:
            args = cells.arguments_for(function, launcher)
        return read_call(function, args, kwargs)

    def _function(self, name: str) -> Any:
        namespace = self.shell.user_ns
        if name not in namespace:
            raise CellError.not_defined(name, [known for known in namespace if callable(namespace[known])])
        if not callable(namespace[name]):
            raise CellError.no_function(name, namespace[name])
        return namespace[name]


def _asks_for_help(line: str, place: Surface) -> bool:
    with contextlib.suppress(OptionError):  # its words cannot be told apart, which is said when they are read
        return asks_for_help(split_words(line), TABLE, place)
    return False


def _answer(line: str, help_page: str, act: Callable[[str], Any]) -> Any:
    """Print the help of a line magic when its line asks for it, and do what it says otherwise."""
    __tracebackhide__ = True
    if wants_help(line):
        print(help_page)  # noqa: T201 - what was asked for
        return None
    try:
        return act(line.strip())
    except IceNotebookError as error:
        raise error.with_traceback(None) from error.__cause__


def load(shell: Any) -> None:
    """Register the magics with a shell, and what helps with typing them."""
    shell.register_magics(ElasticMagics)
    if keep_empty_body not in shell.input_transformers_cleanup:
        shell.input_transformers_cleanup.append(keep_empty_body)
    add_completer(shell, lambda typed, *, is_first_line: _complete(shell, typed, is_first_line=is_first_line))


def unload(shell: Any) -> None:
    """Take back what `load` has registered."""
    for kind in shell.magics_manager.magics.values():
        for name in ("elastic_launch", "elastic_devices", "elastic_standby"):
            kind.pop(name, None)
    picked.choose(None)
    pool().stop()
    if keep_empty_body in shell.input_transformers_cleanup:
        shell.input_transformers_cleanup.remove(keep_empty_body)
    remove_completer(shell)


def keep_empty_body(lines: list[str]) -> list[str]:
    """Give our magic a body of one newline where there is none.

    IPython refuses a cell magic without a body by itself, and by an error after which the cell counts as passed.
    """
    if len(lines) == 1 and lines[0].startswith(_MAGIC) and not lines[0].rstrip().endswith("?"):
        return [lines[0].rstrip("\n") + "\n", "\n"]
    return lines


def _complete(shell: Any, typed: str, *, is_first_line: bool) -> Completions | None:
    """Return what may follow on a line of one of our magics, None on others. `typed` is the line up to the cursor."""
    names = shell.user_ns
    if is_first_line and typed.startswith(_MAGIC + " "):
        return complete_line(typed[len(_MAGIC) + 1 :], TABLE, names, Surface.CELL)
    if typed.startswith(_LINE + " "):
        found = complete_line(typed[len(_LINE) + 1 :], TABLE, names, Surface.LINE)
        return found if found[1] else None  # else it is a script's name or an argument of it: IPython knows files
    for magic, option in ((_DEVICES, "devices"), (_STANDBY, "standby")):
        if typed.startswith(magic + " "):
            return complete_line(f"{option}={typed[len(magic) + 1 :]}", TABLE, names, Surface.CELL)
    return None
