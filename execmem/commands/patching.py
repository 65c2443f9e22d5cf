# SPDX-License-Identifier: GPL-2.0-or-later
"""What `trace` and `probe` share: a target, a call, and proof that text is as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from allocator.types import Hex
from execmem.commands.common import (
    argument,
    load_one,
    machine_for,
    modelled_option,
    module_options,
    result_type,
    shortened,
    unknown_option,
)
from execmem.streams import say

if TYPE_CHECKING:
    from emulator.faults import Fault
    from machine.arguments import Argument
    from machine.machine import ModelledMachine
    from machine.module import Module

F = TypeVar("F", bound=Callable[..., Any])


def call_options(function: F) -> F:
    """Add the arguments FUNCTION and ARG, and the options of a module and of a call."""
    for decorator in reversed(
        (
            click.argument("function", metavar="-- FUNCTION"),
            click.argument("args", nargs=-1, metavar="[ARG...]"),
            module_options,
            modelled_option,
            unknown_option("fault"),
            click.option("--no-init", is_flag=True, help="call without running init first"),
            click.option(
                "--returns",
                default="u64",
                callback=result_type,
                metavar="TYPE",
                help="C type of the result",
            ),
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
