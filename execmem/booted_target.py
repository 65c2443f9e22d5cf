# SPDX-License-Identifier: GPL-2.0-or-later
"""What `trace` and `probe` call and watch in a booted kernel: a module's functions, or its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from allocator.types import Hex
from emulator.faults import BadCall, Fault
from execmem.booted import load_one, open_machine
from execmem.streams import say
from loader.files import SUFFIXES, is_file, module_name
from machine.arguments import Argument, Out
from machine.booted.functions import VMLINUX
from machine.booted.machine import BootedMachine
from machine.booted.module import BootedModule


class BootedTarget:
    """A booted kernel for one call, with a module where one is named.

    Parameters
    ----------
    target, module
        What was given, and what of it stands before the colon.
    values
        The call's arguments.
    params
        The module's parameters.
    options
        The command's.
    """

    def __init__(
        self,
        target: str,
        module: str,
        values: list[Argument],
        *,
        params: dict[str, object],
        options: dict[str, Any],
    ) -> None:
        self.values = values
        self.options = options
        self.machine: BootedMachine = open_machine(module, options)
        self.module: BootedModule | None = None
        self.rest = target
        if module == target and not self._is_module(target):
            if params:
                raise click.UsageError(f"--param: {target} is no module")
        elif module != VMLINUX:
            self.module = load_one(self.machine, module, params)
        self.said = len(self.machine.log)
        self.result: int | None = None
        self.fault: Fault | None = None

    def _is_module(self, name: str) -> bool:
        """Return whether what has no colon is a module, and not the kernel's own functions."""
        if "/" in name or name.endswith(SUFFIXES) or is_file(name):
            return True
        tree = self.machine.tree
        return tree is not None and module_name(name) in tree.files

    def pattern(self, glob: str) -> str:
        """Return what `Machine.trace` and `probe` call something of the target."""
        if self.module is not None:
            return f"{self.module.name}:{glob}"
        return self.rest

    def parameters(self, module: str, function: str) -> int | None:
        """Return how many argument registers a function has; None: that is not known."""
        functions = self.machine.interposing.functions
        try:
            spot = functions.spot("trace", f"{module}:{function}")
        except BadCall:  # it was there when it was traced
            return None
        found = functions.prototype(spot.function)
        return None if found is None else len(found.params)

    def caller(self, address: int) -> str:
        """Return the name of where a call returns to."""
        if address == self.machine.kernel.guest.trap:
            return "outside"
        return self.machine.symbolize(address) or f"{address:#x}"

    def sites(self, count: int) -> str:
        """Say that so many functions were watched."""
        return f"{count} function{'s' * (count != 1)} watched"

    def address(self, function: str) -> int:
        """Return where a function is that can be called; BadCall."""
        if self.module is not None and function in self.module.entries:
            return self.module.address_of(function)
        return self.machine.function(function)

    def call(self, function: str) -> None:
        """Call a function of the module or the kernel; a fault is kept for later."""
        module, returns = self.module, self.options["returns"]
        try:
            if module is not None and function in module.entries:
                self.result = module.call(function, *self.values, returns=returns)
            else:
                address = self.machine.function(function)
                self.result = self.machine.call(address, *self.values, returns=returns)
        except Fault as fault:
            self.fault = fault

    @contextmanager
    def text_unchanged(self) -> Iterator[None]:
        """Do nothing: what looks on from outside writes no text."""
        yield

    def outcome(self, function: str) -> dict[str, Any]:
        """Return what the call gave, as JSON wants it."""
        return {
            "module": VMLINUX if self.module is None else self.module.name,
            "arch": self.machine.arch.name,
            "models": self.machine.models,
            "function": function,
            "result": None if self.result is None else Hex(self.result),
            "fault": None if self.fault is None else str(self.fault),
            "outputs": [bytes(value).hex() for value in self.values if isinstance(value, Out)],
            "log": [line.text for line in self.machine.log[self.said :]],
        }

    def show(self, function: str) -> None:
        """Print what the call gave; the fault, if that is what it gave, is raised."""
        for line in self.machine.log[self.said :]:
            say(line.text, err=self.fault is not None)
        if self.fault is not None:
            raise self.fault
        assert self.result is not None
        say(f"{function} = {self.result:#x} ({self.result})")
        for output in self.outcome(function)["outputs"]:
            say(f"out: {output}")
