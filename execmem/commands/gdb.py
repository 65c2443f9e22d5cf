# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem gdb`: a module's init, or a function, under a debugger."""

from __future__ import annotations

import shutil
import socket as sockets
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any

import click

from execmem.commands.common import (
    boots,
    examples,
    importing,
    machine_for,
    parameters,
    run_options,
    sandbox_with,
)
from execmem.commands.patching import target_of
from execmem.streams import say

if TYPE_CHECKING:
    from execmem.worker.clerk import Clerk, Outside
    from machine.gdb.server import Server

PROGRAM = "gdb-multiarch"
LOOPBACK = "127.0.0.1"
REPLAY = "replay"


def _outside(options: dict[str, Any]) -> Outside:
    """Return what listens for a gdb and starts one, and hands on what they say."""
    from execmem.fuzzing import reports
    from execmem.worker.clerk import Outside
    from machine.gdb.listening import Listening, Through

    does: dict[str, Callable[[], object]] = {}
    host = options["listen"] or LOOPBACK
    batch = None if options["batch"] is None else Batch(options["batch"])
    crash = options["function"] if options["module"] == REPLAY else None
    reads = () if crash is None else tuple(reports.read(crash)[1].reads())
    listening = Listening(options["port"], path=options["socket"], host=host)
    if batch is not None:
        start = partial(batch.start, listening.address)
        does = {"start": start, "check": batch.check, "end": batch.end}
    here, there = sockets.socketpair()

    def leave() -> None:
        options["place"] = Through(here.detach(), listening.address, listening.port)
        listening.forget()
        there.close()

    def end() -> None:
        listening.close()
        if batch is not None:
            batch.give_up()

    def begin() -> None:
        here.close()
        listening.pass_on(there)

    return Outside(does=does, reads=reads, begins=begin, ends=end, leaves=leave)


@click.command()
@click.argument("module", metavar="MODULE")
@click.argument("function", required=False, metavar="[FUNCTION")
@click.argument("args", nargs=-1, metavar="[ARG...]]")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, metavar="N", help="any that is free"
)
@click.option("--socket", metavar="PATH", help="a socket in the file system, and no port")
@click.option("--listen", metavar="ADDRESS", help=f"of this host ({LOOPBACK}): anybody there may")
@click.option(
    "--batch", metavar="FILE", help=f"start {PROGRAM}, with commands from a file, and no terminal"
)
@run_options
@sandbox_with(_outside)
@examples(
    "execmem gdb hello --batch script.gdb",
    "execmem gdb mathuser mathuser_lcm 21 6 --arch arm64 --batch script.gdb",
    "execmem gdb replay CRASH",
)
def gdb(
    module: str,
    function: str | None,
    args: tuple[str, ...],
    port: int,
    socket: str | None,
    listen: str | None,
    batch: str | None,
    **options: Any,
) -> None:
    """Let gdb debug a module's init, or one of its functions.

    The guest waits at the first instruction until a gdb connects, which then knows the modules,
    the kernel and their symbols by itself. An ARG is what `execmem run` takes; with --kernel,
    vmlinux as MODULE means the kernel's own functions. gdb replay CRASH runs the input of a finding
    of `execmem fuzz`, on the machine that it was found on.
    """
    from execmem import report

    place, clerk = options.pop("place", None), options.pop("clerk", None)
    if socket is not None and (listen is not None or port):
        raise click.UsageError("--socket: a socket in the file system has no port")
    if listen is not None and listen != LOOPBACK:
        say(f"warning: whoever reaches {listen} may do everything to the guest", err=True)
    where = {"port": port, "path": socket, "host": listen or LOOPBACK, "place": place}
    found: Batch | None = None
    if batch is not None:
        found = Batch(batch) if clerk is None else Sent(batch, clerk)
    if module == REPLAY and function is not None:
        outcome, fault = _replay(function, args, options, where, found)
    elif function is None:
        outcome, fault = _init(module, options, where, found)
    else:
        outcome, fault = _call(module, function, args, options, where, found)
    if options["as_json"]:
        report.print_json(outcome)
    if fault is not None:
        raise fault


def _call(
    module: str,
    function: str,
    args: Sequence[str],
    options: dict[str, Any],
    where: Mapping[str, Any],
    batch: Batch | None,
) -> tuple[dict[str, Any], Exception | None]:
    """Call a function under a debugger; what came of it, and what it stopped at."""
    from machine.control import Ended

    session = target_of(module, module, args, options)
    address = session.address(function)
    ended = False
    with _served(session.machine, where, batch, at=address) as server:
        try:
            session.call(function)
        except Ended:
            ended = True
        server.ends_with(int(session.fault is not None))
    _tell(batch, ended=ended, options=options)
    if not options["as_json"] and session.fault is None and not ended:
        session.show(function)
    return session.outcome(function) | _how(server, batch, ended=ended), session.fault


def _init(
    module: str, options: dict[str, Any], where: Mapping[str, Any], batch: Batch | None
) -> tuple[dict[str, Any], Exception | None]:
    """Load a module under a debugger; what came of it, and why it stopped or was refused."""
    from allocator.errors import ExecmemError
    from execmem.commands.common import load_one
    from loader.files import module_name
    from machine.control import Ended

    if options.pop("no_init"):
        raise click.UsageError("--no-init: name a FUNCTION, or it is init that is debugged")
    name, fault, ended = module_name(module), None, False
    machine: Any
    load: Callable[[], object]
    if boots(options):
        from execmem import booted

        machine = booted.open_machine(module, options)
        load = partial(booted.load_one, machine, module, parameters(options["params"]))
    else:
        machine = machine_for(module, options)
        load = partial(load_one, machine, module, options, init=True)
    before = len(machine.log)
    with _served(machine, where, batch, init=name) as server:
        try:
            load()
        except Ended:
            ended = True
        except ExecmemError as error:
            fault = error
        server.ends_with(int(fault is not None))
    _tell(batch, ended=ended, options=options)
    if not server.was_connected and fault is None:
        say(f"{name}: has no init: nothing was debugged", err=True)
    if not options["as_json"]:
        for line in machine.log[before:]:
            say(line.text)
    found = {
        "module": name,
        "arch": machine.arch.name,
        "models": machine.models,
        "function": None,
        "result": None,
        "fault": None if fault is None else str(fault),
        "outputs": [],
        "log": [line.text for line in machine.log[before:]],
    }
    return found | _how(server, batch, ended=ended), fault


def _replay(
    crash: str,
    args: Sequence[str],
    options: Mapping[str, Any],
    where: Mapping[str, Any],
    batch: Batch | None,
) -> tuple[dict[str, Any], Exception | None]:
    """Run the input of a finding under a debugger; what came of it, and what it stopped at."""
    from emulator.faults import Fault
    from machine.control import Ended

    if args:
        raise click.UsageError("gdb replay CRASH: the input is that of the finding")
    with importing():
        from execmem.fuzzing import reports

    _, setting, data = reports.read(crash)
    machine, run, described = reports.prepared(setting, data)
    before, result, fault, ended = len(machine.log), None, None, False
    with _served(machine, where, batch) as server:
        try:
            result = run()
        except Ended:
            ended = True
        except Fault as error:
            fault = error
        server.ends_with(int(fault is not None))
    _tell(batch, ended=ended, options=options)
    found = [] if machine.sanitizer is None else machine.sanitizer.findings
    if not options["as_json"]:
        for line in [described, *map(str, found)]:
            say(line)
    outcome = {
        "module": setting.module,
        "arch": machine.arch.name,
        "models": machine.models,
        "function": setting.function or None,
        "result": None if result is None else f"{result:#x}",
        "fault": None if fault is None else str(fault),
        "outputs": [],
        "log": [line.text for line in machine.log[before:]],
    }
    return outcome | _how(server, batch, ended=ended), fault


def _how(server: Server, batch: Batch | None, *, ended: bool) -> dict[str, Any]:
    """Return how it was debugged, as JSON wants it."""
    return {
        "address": server.address,
        "connected": server.was_connected,
        "ended": ended,
        "debugger": [] if batch is None else batch.said,
    }


def _tell(batch: Batch | None, *, ended: bool, options: Mapping[str, Any]) -> None:
    """Show what a debugger printed that was started here, and whether it has ended the call."""
    if not options["as_json"] and batch is not None:
        for line in batch.said:
            say(line)
    if ended:
        say("the debugger has ended the call", err=True)


class Batch:
    """A gdb that carries a file of commands out.

    Parameters
    ----------
    file
        The commands.

    `said` is what it has printed, once it has ended.
    """

    def __init__(self, file: str) -> None:
        from allocator.errors import ExecmemError

        if shutil.which(PROGRAM) is None:
            raise ExecmemError(f"--batch: {PROGRAM} is not installed")
        self._file = file
        self._running: tuple[subprocess.Popen[bytes], IO[bytes]] | None = None
        self.said: list[str] = []

    def start(self, address: str) -> None:
        """Let it connect to an address."""
        words = (PROGRAM, "-nx", "-batch", "-ex", f"target remote {address}", "-x", self._file)
        output = TemporaryFile()  # noqa: SIM115 -- `end` closes it
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        self._running = process, output

    def check(self) -> None:
        """Refuse to wait for one that has ended; ExecmemError."""
        from allocator.errors import ExecmemError

        if self._running is not None and self._running[0].poll() is not None:
            self.end()
            last = self.said[-1] if self.said else "it says nothing"
            raise ExecmemError(f"{PROGRAM} never connected: {last}")

    def give_up(self) -> None:
        """End it, if it is there still."""
        if self._running is not None:
            self._running[0].kill()
            self.end()

    def end(self) -> list[str]:
        """Wait for its end, if it was started; return what it has printed."""
        if self._running is not None:
            process, output = self._running
            self._running = None
            process.wait()
            output.seek(0)
            self.said = output.read().decode("utf-8", "backslashreplace").splitlines()
            output.close()
        return self.said


class Sent(Batch):
    """One that is started outside of the fence that this process is behind."""

    def __init__(self, file: str, clerk: Clerk) -> None:
        super().__init__(file)
        self._clerk, self._started = clerk, False

    def start(self, address: str) -> None:
        """Let it connect to where it is waited for."""
        del address  # which the other one knows
        self._clerk.ask("start")
        self._started = True

    def check(self) -> None:
        """Refuse to wait for one that has ended; ExecmemError."""
        self._clerk.ask("check")

    def end(self) -> list[str]:
        """Wait for its end, if it was started; return what it has printed."""
        if self._started:
            self._started, self.said = False, self._clerk.ask("end")
        return self.said


@contextmanager
def _served(
    machine: Any, where: Mapping[str, Any], batch: Batch | None, **begins: Any
) -> Iterator[Server]:
    """Let a debugger have what is called meanwhile, and start one where that is asked for."""

    def on_wait(server: Server) -> None:
        if batch is not None:
            batch.start(server.address)
            return
        target = f"{PROGRAM} -ex 'target remote {server.address}'"
        say(f"Listening on {server.address}; {target}", err=True)

    check = None if batch is None else batch.check
    server = machine.gdb(**where, **begins, on_wait=on_wait, while_waiting=check)
    try:
        with server:
            yield server
    finally:
        if batch is not None:
            batch.end()
