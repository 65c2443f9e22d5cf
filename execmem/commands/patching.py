# SPDX-License-Identifier: GPL-2.0-or-later
"""What `trace` and `probe` share: a target, a call, and proof that text is as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from allocator.types import Hex
from execmem.commands.common import (
    argument,
    boots,
    load_one,
    machine_for,
    parameters,
    run_options,
    sandbox_option,
    shortened,
)
from execmem.streams import say

if TYPE_CHECKING:
    from archs import Arch
    from emulator.faults import Fault
    from kernels.tracing import AnyProbe, CallTrace, OnCall, TracedCall
    from machine.arguments import Argument
    from machine.machine import ModelledMachine
    from machine.memorytrace import MemoryTrace
    from machine.module import Module
    from machine.typedcalls import Call

F = TypeVar("F", bound=Callable[..., Any])


def call_options(function: F) -> F:
    """Add the arguments FUNCTION and ARG, and the options of a module and of a call."""
    for decorator in reversed(
        (
            click.argument("function", metavar="-- FUNCTION"),
            click.argument("args", nargs=-1, metavar="[ARG...]"),
            run_options,
            sandbox_option,
        )
    ):
        function = decorator(function)
    return function


def split_target(target: str) -> tuple[str, str]:
    """Return the module of `MODULE[:REST]`, and the rest; a module may be a path."""
    module, colon, rest = target.rpartition(":")
    if not colon or "/" in rest or Path(target).is_file():
        return target, ""
    return module, rest


class Target(Protocol):
    """What functions are called, watched and looked up in, on either kind of machine."""

    values: list[Argument]
    fault: Fault | None

    @property
    def machine(self) -> Watched:
        """The machine."""
        ...

    def pattern(self, glob: str) -> str:
        """Return what `Machine.trace` and `probe` call something of the target."""
        ...

    def address(self, function: str) -> int:
        """Return where a function is that can be called; BadCall."""
        ...

    def call(self, function: str) -> None:
        """Call a function; a fault is kept for later."""
        ...

    def text_unchanged(self) -> AbstractContextManager[None]:
        """Refuse to leave with another byte of text than before."""
        ...

    def parameters(self, module: str, function: str) -> int | None:
        """Return how many argument registers a function has; None: that is not known."""
        ...

    def caller(self, address: int) -> str:
        """Return the name of where a call returns to."""
        ...

    def sites(self, count: int) -> str:
        """Say that so many functions were traced."""
        ...

    def outcome(self, function: str) -> dict[str, Any]:
        """Return what the call gave, as JSON wants it."""
        ...

    def show(self, function: str) -> None:
        """Print what the call gave; the fault, if that is what it gave, is raised."""
        ...


class Watched(Protocol):
    """A machine whose functions can be watched."""

    arch: Arch

    def trace(
        self, pattern: str, *more: str, limit: int = ..., on_entry: OnCall | None = ...
    ) -> CallTrace:
        """Trace functions."""
        ...

    def typed(self, call: TracedCall, *, strings: bool = ...) -> Call:
        """Return a call that was traced as C declares it."""
        ...

    def trace_memory(self, *, limit: int = ...) -> MemoryTrace:
        """Note loads and stores."""
        ...

    def probe(self, place: int | str) -> AnyProbe:
        """Put a probe at an instruction."""
        ...

    def symbolize(self, address: int) -> str | None:
        """Return the name of a place."""
        ...

    def disassemble(self, address: int) -> str:
        """Return an instruction as text."""
        ...


def target_of(target: str, module: str, args: Sequence[str], options: dict[str, Any]) -> Target:
    """Return what a command line means: a module on the modelled kernel, or a booted kernel.

    Parameters
    ----------
    target
        As it was given.
    module
        The module that it begins with.
    """
    if not boots(options):
        return Session(module, args, options)
    if options.pop("no_init"):
        raise click.UsageError("--no-init: a booted kernel runs the init of what it loads")
    from execmem.booted_target import BootedTarget

    values = [argument(text) for text in args]
    params = parameters(options["params"])
    return BootedTarget(target, module, values, params=params, options=options)


class Session:
    """A module that is loaded for one call, whose text must be the same at the end."""

    def __init__(self, module: str, args: Sequence[str], options: dict[str, Any]) -> None:
        self.values: list[Argument] = [argument(text) for text in args]
        self.options = options
        self.machine: ModelledMachine = machine_for(module, options)
        self.module: Module = load_one(
            self.machine, module, options, init=not options.pop("no_init")
        )
        self.result: int | None = None
        self.fault: Fault | None = None

    def pattern(self, glob: str) -> str:
        """Return what `Machine.trace` and `probe` call something of the module."""
        return f"{self.module.name}:{glob}"

    def parameters(self, _module: str, _function: str) -> int | None:
        """Return None: nobody knows how many argument registers count."""
        return None

    def caller(self, address: int) -> str:
        """Return the name of where a call returns to."""
        return self.machine.symbolize(address) or f"{address:#x}"

    def sites(self, count: int) -> str:
        """Say that so many call sites were patched."""
        return f"{count} call sites patched and restored"

    def address(self, function: str) -> int:
        """Return where a function is that can be called; BadCall."""
        return self.module.address_of(function)

    def call(self, function: str) -> None:
        """Call the function; a fault is kept for later."""
        from emulator.faults import Fault

        returns = self.options["returns"]
        try:
            self.result = self.module.call(function, *self.values, returns=returns)
        except Fault as fault:
            self.fault = fault
        self.machine.kernel.flush_log()

    @contextmanager
    def text_unchanged(self) -> Iterator[None]:
        """Refuse to leave with another byte of text than before."""
        from allocator.errors import ExecmemError

        before = self._text()
        yield
        if self._text() != before:
            raise ExecmemError("the text of a module is not as it was before")

    def _text(self) -> dict[str, bytes]:
        return {
            f"{module.name} {kind.name}": self.machine.read(region.address, region.size)
            for module in self.machine.modules.values()
            for kind, region in module.regions.items()
            if kind.is_text
        }

    def outcome(self, function: str) -> dict[str, Any]:
        """Return what the call gave, as JSON wants it."""
        from machine.arguments import Out

        return {
            "module": self.module.name,
            "arch": self.machine.arch.name,
            "models": self.machine.models,
            "function": function,
            "result": None if self.result is None else Hex(self.result),
            "fault": None if self.fault is None else str(self.fault),
            "outputs": [bytes(value).hex() for value in self.values if isinstance(value, Out)],
            "log": [line.text for line in self.machine.log],
        }

    def show(self, function: str) -> None:
        """Print what the call gave; the fault, if that is what it gave, is raised."""
        if self.fault is not None:
            raise self.fault
        assert self.result is not None
        say(f"{function} = {self.result:#x} ({self.result})")
        for output in self.outcome(function)["outputs"]:
            say(f"out: {shortened(output)}")
