"""`ElasticLauncher`: options around a launch, with the behaviour of ice-learn's launcher, and the way from a task to a running `Run`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ice_notebook.context import current_launcher as context
from ice_notebook.devices import machine, picked
from ice_notebook.devices.grammar import Devices, ResolvedDevices
from ice_notebook.errors import CellError, DeviceError, FrozenError, IceNotebookError, LaunchError
from ice_notebook.host import notebook
from ice_notebook.host.interrupts import Interrupts, held, stopped
from ice_notebook.kernel.forgotten import history
from ice_notebook.kernel.planning import (
    check_descriptors,
    check_platform,
    check_port,
    make_plan,
    warn_of_other_writers,
    warn_of_own_memory,
)
from ice_notebook.kernel.pool import Wish, pool
from ice_notebook.kernel.run import Run
from ice_notebook.options.launch_options import TABLE, LaunchOptions
from ice_notebook.options.table import Surface
from ice_notebook.runs import store, upkeep
from ice_notebook.runs.store import RunFolder
from ice_notebook.tasks.cell import BodyTask, FunctionTask
from ice_notebook.tasks.scripts import ScriptTask
from ice_notebook.ui.watching import choose_ui, open_view, watch
from ice_notebook.values.descriptions import describe_text
from ice_notebook.values.shared_values import SharedValues
from ice_notebook.wire import protocol as p

if TYPE_CHECKING:
    from ice_notebook.values.pickles import Prepared

_ARGUMENT_CHARACTERS = 40  # of each argument, in the name of what runs


class ElasticLauncher(context.Context):
    """Launches functions on the ranks that its options describe.

    Options are given by keyword, or by item until `freeze()`, which checks them together and locks them. Calling an unfrozen launcher
    freezes it.

        launcher = ElasticLauncher("cuda:0,1", max_restarts=2).freeze()
        run = launcher(train, launcher, epochs=3)     # waits, raises RunFailed
        run = launcher.start(train, launcher)         # returns at once

    Passed to the function, or mentioned in it, it arrives as the rank's own: `launcher.rank`, `launcher.assigned_device` and so on. In the
    notebook itself these answer as one process, rank 0 of 1.
    """

    def __init__(self, devices: Any = None, **options: Any) -> None:
        """Take options by their names in `docs/options.md`.

        Raises:
            OptionError: an option is unknown, or its value is not one that it takes.
            DeviceError: the devices cannot be read.
        """
        self._asked: dict[str, Any] = {}
        self._options: LaunchOptions | None = None
        if devices is not None:
            self["devices"] = devices
        for name, value in options.items():
            self[name] = value

    @classmethod
    def of(cls, options: LaunchOptions, *, is_for_script: bool = False) -> ElasticLauncher:
        """Return a frozen launcher with options that another surface has read.

        A script is started on each node by hand, as torchrun is; of a function's nodes one starts it, and the others join.
        """
        made = cls()
        made._asked = options.asked()
        made._options = options.validate_by_hand() if is_for_script else options.validate()
        return made

    # ---- options

    def __setitem__(self, name: str, value: Any) -> None:
        if self._options is not None:
            raise FrozenError.option(name)
        self._asked.update(TABLE.convert({name: value}, Surface.PYTHON))

    def __getitem__(self, name: str) -> Any:
        return getattr(self.options, TABLE.find(name, Surface.PYTHON).name)

    def update(self, options: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Set several options."""
        for name, value in {**(options or {}), **more}.items():
            self[name] = value

    def clone(self) -> ElasticLauncher:
        """Return an unfrozen launcher with the same options."""
        made = ElasticLauncher()
        made._asked = dict(self._asked)
        return made

    def freeze(self) -> ElasticLauncher:
        """Check the options together, lock them, and return the launcher. A second time changes nothing.

        Raises:
            OptionError: two of them contradict each other, or ask for what this version cannot do.
        """
        if self._options is None:
            self._options = LaunchOptions.of(self._asked).validate()
        return self

    @property
    def options(self) -> LaunchOptions:
        """Return the options as they stand."""
        return self._options if self._options is not None else LaunchOptions.of(self._asked)

    # ---- launching

    def __call__(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Run:
        """Run a function on every rank, show it, wait, and return the finished run.

        Raises:
            RunFailed: a rank failed; the error has the run as `.run`.
            KeyboardInterrupt: the run was stopped.
            PayloadError: something that the function needs cannot be sent to the ranks.
            LaunchError, DeviceError, OptionError: it cannot be started as asked.
        """
        __tracebackhide__ = True
        return self.launch(*read_call(function, args, kwargs), waits=True)

    def start(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Run:
        """Run a function on every rank, and return at once with the run; `run.result()` waits. Raises as a call does, but for the outcome."""
        return self.launch(*read_call(function, args, kwargs), waits=False)

    def launch(
        self,
        task: FunctionTask | BodyTask | ScriptTask,
        name: str,
        *,
        waits: bool,
        on_run: Callable[[Run], None] = lambda _: None,
        interrupts: Interrupts | None = None,
        wire: Callable[[int], p.Wiring] = lambda _: p.Wiring(),
    ) -> Run:
        """Launch a task; magics and command line come this way too. `on_run` gets the run as soon as it has begun.

        From the first step to the last a signal is only counted: nothing is broken off in the middle. `interrupts` are those of a caller who
        counts already. `wire` takes the number of ranks and returns what their standard streams are.
        """
        __tracebackhide__ = True
        if context.is_rank():
            raise LaunchError.in_rank(context.RankContext().rank)
        check_platform()
        options = self.freeze().options
        ui = choose_ui(options.ui, waits=waits)
        with held(signal.SIGINT) if interrupts is None else contextlib.nullcontext(interrupts) as counted:
            run = _begin_run(options, task, name, counted, wire)
            on_run(run)
            try:
                # After the start: agent and ranks import torch while widgets are imported here.
                view = open_view(run, ui, waits=waits, shown=options.local_ranks_filter)
                if waits:
                    watch(run, view, counted)
                counted.check()
            except BaseException:  # nobody would watch the run
                run.kill()
                raise
        return run

    # ---- what it answers outside ranks

    @property
    def devices(self) -> tuple[str, ...]:
        """Return the physical names of the devices that a launch would use now, one a rank."""
        return tuple(rank.name for rank in _settle_devices(self.options)[0].ranks)

    @property
    def dist_backend(self) -> str:
        """Return the backend that the ranks' process group would have."""
        return _settle_devices(self.options)[0].dist_backend

    @property
    def max_restarts(self) -> int:
        """Return how often the worker group may be started again."""
        return self.options.max_restarts

    @property
    def rdzv_id(self) -> str:
        """Return the rendezvous id."""
        return self.options.rdzv_id

    @property
    def role_name(self) -> str:
        """Return the role of the ranks."""
        return self.options.role

    @property
    def eager_mode(self) -> bool:
        """Return True: this is no rank."""
        return True

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value}" for name, value in self._written())
        return f"ElasticLauncher({given})"

    def _written(self) -> Iterator[tuple[str, str]]:
        for name in self._asked:
            yield name, LaunchOptions._written(name, getattr(self.options, name))


# ---- from a task to a run ----------------------------------------------------------------------------------------------------------------


def _begin_run(
    options: LaunchOptions,
    task: FunctionTask | BodyTask | ScriptTask,
    name: str,
    interrupts: Interrupts,
    wire: Callable[[int], p.Wiring],
) -> Run:
    """Return a run that has begun. If it cannot begin, or is interrupted before, nothing of it is left.

    Whatever can be refused is refused before the first file is made.
    """
    _clean_up_once()
    devices, devices_by = _settle_devices(options)
    warn_of_own_memory(devices)
    check_port(options, is_for_script=isinstance(task, ScriptTask))
    check_descriptors(options, len(devices.ranks))
    shown = notebook.ShownNames()
    prepared = None if isinstance(task, ScriptTask) else _prepare_payload(options, task, devices, shown, interrupts)
    run_id = store.new_run_id()
    with contextlib.ExitStack() as undo:
        folder = RunFolder.create(run_id, log_dir=options.log_dir, rdzv_id=options.rdzv_id)
        undo.callback(folder.discard)
        warn_of_other_writers(folder.path, is_users=options.log_dir is not None)
        plan = make_plan(
            options,
            devices,
            devices_by=devices_by,
            run_id=run_id,
            name=name,
            kind=_KINDS[type(task)],
            script=task.script if isinstance(task, ScriptTask) else None,
            folder=folder,
            wiring=wire(len(devices.ranks)),
        )
        shared = SharedValues.make(run_id)
        if shared is not None:
            undo.callback(shared.discard)
        plan = _write_payload(plan, task, prepared, shown, folder, shared)
        run = Run(plan, folder, owner=folder.own(), shared=shared)
        undo.callback(run.end)
        interrupts.check()
        _start(run, folder, options, undo, interrupts)
        undo.pop_all()
    return run


def _write_payload(
    plan: p.Plan,
    task: FunctionTask | BodyTask | ScriptTask,
    prepared: Prepared | None,
    shown: notebook.ShownNames,
    folder: RunFolder,
    shared: SharedValues | None,
) -> p.Plan:
    """Write what is launched, and return the plan with where it lies."""
    places = [shared.path / "payload", folder.payload_file] if shared is not None else [folder.payload_file]
    try:
        store.write_atomically(folder.sources_file, json.dumps(_sources_of(task, prepared, shown)).encode())
        payload = prepared.write_first(places) if prepared is not None else None
    except OSError as error:
        raise LaunchError.files("The function and its values" if prepared is not None else "The run's files", error) from error
    return p.with_places(plan, payload=payload, shared=None if shared is None else shared.path)


def _start(run: Run, folder: RunFolder, options: LaunchOptions, undo: contextlib.ExitStack, interrupts: Interrupts) -> None:
    """Give a run its agent, and its thread; `undo` ends what has been started."""
    wish, expects = _wish(options, run.plan), run.plan.may_stand_by and _is_another_likely()

    def write(plan: p.Plan) -> None:
        try:
            folder.write_plan(plan)
        except OSError as error:
            raise LaunchError.files("The plan of the run", error) from error

    try:
        agent, plan = pool().start(run, write, wish, uses=options.standby != "off", expects=expects)
        undo.callback(agent.discard)
        interrupts.check()
        run.start(agent, plan)
    except (OSError, RuntimeError) as error:  # no more descriptors, processes or threads
        if isinstance(error, IceNotebookError):
            raise
        raise LaunchError.resources(error) from error
    run.when_done(upkeep.prune)
    history().add(run)
    if expects:
        pool().expect(run, wish)


def _is_another_likely() -> bool:
    """Count this launch, and return whether there will probably be another one: not after the only one of a program."""
    global _launches  # noqa: PLW0603 - of this process
    _launches += 1
    return _launches > 1 or notebook.current_shell() is not None or pool().is_on


_launches = 0


def _wish(options: LaunchOptions, plan: p.Plan) -> Wish:
    """Return what is to stand by after a launch with these options."""
    standby = options.standby if options.standby != "auto" else pool().default
    n_ranks = {"auto": plan.world_size, "off": 0}.get(standby, standby) if isinstance(standby, str) else standby
    preload = {"auto": True, "no": False}.get(options.preload, ()) if isinstance(options.preload, str) else options.preload
    return Wish(int(n_ranks), plan.world_size if plan.max_restarts else 0, preload)


_KINDS = {FunctionTask: "function", BodyTask: "body", ScriptTask: "script"}


def _prepare_payload(
    options: LaunchOptions,
    task: FunctionTask | BodyTask,
    devices: ResolvedDevices,
    shown: notebook.ShownNames,
    interrupts: Interrupts,
) -> Prepared:
    from ice_notebook.values import pickles  # noqa: PLC0415 - a launch of a script must not wait for it

    try:
        with interrupts.let_through():  # classes of the user's say how their objects are pickled
            return pickles.prepare(
                dataclasses.replace(task, file_name=shown(task.file_name)) if isinstance(task, BodyTask) else task,
                devices=pickles.DeviceTensors.TO_ASSIGNED if devices.device_type == "cuda" else pickles.DeviceTensors.REFUSE,
                by_value=options.by_value,
                main_globals=notebook.namespace(),
                names=_names_of(task),
                shown_as=shown,
                maps_files=not options.has_other_nodes,
            )
    except KeyboardInterrupt as interrupt:
        raise stopped("the launch was interrupted") from interrupt


def _sources_of(
    task: FunctionTask | BodyTask | ScriptTask, prepared: Prepared | None, shown: notebook.ShownNames
) -> Mapping[str, Sequence[str]]:
    """Return the texts by which failures are shown, {file name: (label, text)}."""
    if isinstance(task, ScriptTask) or prepared is None:
        return task.sources if isinstance(task, ScriptTask) else {}
    return shown.sources(prepared.source_files | ({task.file_name} if isinstance(task, BodyTask) else set()))


def _settle_devices(options: LaunchOptions) -> tuple[ResolvedDevices, str]:
    """Return the device of each rank on this machine, and who chose them: `picked` when the launch named none and the notebook had."""
    default = picked.picked_devices() if options.devices is None else None
    inventory = _look_at_machine(options.devices or default)
    try:
        return options.resolve_devices(inventory, default), "" if default is None else "picked"
    except DeviceError as error:
        if default is None:
            raise
        raise error.of_notebook() from None


def _look_at_machine(devices: Devices | None) -> machine.Inventory:
    """Return what of this machine these devices need to be known."""
    found = machine.inventory(look_for_gpus=devices is None or devices.kind != "cpu")
    if devices is not None and devices.free is not None:
        from ice_notebook.devices import holders  # noqa: PLC0415 - only this asks who uses a GPU

        return dataclasses.replace(found, held=holders.held(found.visible))
    return found


def read_call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[FunctionTask, str]:
    """Return a call as a task, and what runs, as a person would write it: `train(launcher, epochs=3)`.

    Raises:
        CellError: it is no function, or it does not take these arguments.
    """
    return _function_task(function, args, kwargs), _name_of_call(function, args, kwargs)


def _function_task(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> FunctionTask:
    """Return a call as a task, refusing arguments that the function does not take."""
    if not callable(function):
        raise CellError.not_callable(function)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin does not always say
        return FunctionTask(function, args, kwargs)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise CellError.arguments(getattr(function, "__name__", "the function"), error) from None
    return FunctionTask(function, args, kwargs)


def _names_of(task: FunctionTask | BodyTask) -> dict[str, Any]:
    """Return the parts of a task by the names that an error should use for them."""
    if isinstance(task, BodyTask):
        return task.names
    names: dict[str, Any] = {getattr(task.function, "__name__", "function"): task.function}
    names |= {f"args[{i}]": argument for i, argument in enumerate(task.args)}
    return names | {f"kwargs[{name!r}]": argument for name, argument in task.kwargs.items()}


def _name_of_call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Return what runs, as a person would write it: `train(launcher, epochs=3)`."""
    written = [_written_argument(argument) for argument in args]
    written += [f"{name}={_written_argument(argument)}" for name, argument in kwargs.items()]
    return f"{getattr(function, '__name__', type(function).__name__)}({', '.join(written)})"


def _written_argument(argument: Any) -> str:
    return "launcher" if isinstance(argument, context.Context) else describe_text(argument, limit=_ARGUMENT_CHARACTERS)


@functools.cache
def _clean_up_once() -> None:
    """See to what earlier kernels have left, at this one's first launch."""
    upkeep.clean_up()
