# SPDX-License-Identifier: GPL-2.0-or-later
"""What is fuzzed, as plain data: what workers, replays and reports set up anew."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from execmem import booted
from execmem.fuzzing import targets
from execmem.fuzzing.engine import Search
from execmem.fuzzing.folder import BadFolder
from execmem.fuzzing.inputs import BadInput
from execmem.modelled import modelled_machine
from execmem.worker.reading import files_of_design, files_of_kernel, trees_of
from loader.files import is_file, module_name
from machine.machine import ModelledMachine
from machine.rounds import INSTRUCTIONS, SECONDS

# Options of the machine, and what they are when not given.
MACHINE: dict[str, Any] = {
    "root": None,
    "arch": None,
    "kernel": None,
    "modelled": False,
    "cpu": "",
    "console": False,
    "design": "default",
    "kaslr": None,
    "seed": 0,
    "heap_limit": None,
    "no_text_poke": False,
    "params": (),
    "stubs": (),
    "checks": "hardware",
    "errata": (),
    "kasan": False,
    "with_plt": False,
    "force": False,
    "constructors": False,
    "instructions": None,
    "seconds": None,
    "unknown": "fault",
}
_PATHS = ("root", "kernel")


@attrs.frozen(kw_only=True)
class Setting:
    """A machine and a target.

    Parameters
    ----------
    machine
        Options of the command line, those that are not as they are by default.
    module
        The module, or `vmlinux`.
    function, inputs
        A function, and what it is called with.
    device, operation
        A device, and what is done with it.
    syscall
        A system call.
    harness
        `FILE:FUNCTION`.
    checks
        Checks that the machine is put under (`Machine.sanitize`).
    exact
        As of `Search`.
    limit
        Instructions of a round.
    """

    machine: dict[str, Any]
    module: str = ""
    function: str = ""
    inputs: tuple[str, ...] = ()
    device: str = ""
    operation: str = "write"
    syscall: str = ""
    harness: str = ""
    checks: tuple[str, ...] = ()
    exact: bool = False
    limit: int = INSTRUCTIONS

    @classmethod
    def of(cls, options: Mapping[str, Any], **more: Any) -> Setting:
        """Return the setting that options of a command line mean; paths become absolute."""
        machine: dict[str, Any] = {
            name: list(options[name]) if isinstance(options[name], tuple) else options[name]
            for name, default in MACHINE.items()
            if name in options and options[name] != default
        }
        if options.get("kernel") is not None and not options.get("modelled"):
            machine.pop("seed", None)  # which is then that of inputs alone
        for name in _PATHS:
            place = machine.get(name)
            if isinstance(place, str) and Path(place).exists():
                machine[name] = str(Path(place).resolve())
        return cls(machine=machine, **more)

    @classmethod
    def read(cls, values: Mapping[str, Any], path: str) -> Setting:
        """Return the setting that a file of a finding holds; BadFolder where it holds none."""
        kinds = {
            field.name: type(field.default)
            for field in attrs.fields(cls)
            if field.name != "machine"
        }
        machine = values.get("machine")
        good = isinstance(machine, dict) and set(machine) <= set(MACHINE)
        for name, value in values.items():
            kind = kinds.get(name)
            good = good and (
                name == "machine"
                or (kind is tuple and isinstance(value, list) and all(map(_is_text, value)))
                or (kind is not None and kind is not tuple and type(value) is kind)
            )
        if not good:
            raise BadFolder(path, "is damaged: it does not say what was fuzzed")
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**plain)

    def plain(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        found = attrs.asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in found.items()}

    @property
    def options(self) -> dict[str, Any]:
        """Options as commands have them."""
        found = {**MACHINE, **self.machine}
        return {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()}

    @property
    def title(self) -> str:
        """What is fuzzed, in a word."""
        what = self.function or self.harness or self.syscall
        if self.device:
            what = f"/dev/{self.device} {self.operation}"
        return f"{self.module} {what}".strip()

    def open(self) -> Any:
        """Return the machine, its module loaded."""
        own = self.module if self.module != targets.VMLINUX else ""
        options = self.options
        what: Any = Path(own) if is_file(Path(own)) else own
        params: dict[str, Any] = {}
        for word in options["params"]:
            name, equals, value = word.partition("=")
            params[name] = value if equals else True
        if options["kernel"] is not None and not options["modelled"]:
            machine: Any = booted.open_machine(own, options)
        else:
            machine = _modelled(options)
        if own and module_name(own) not in machine.modules:
            machine.load(what, **params)
        if self.checks:
            machine.sanitize(*self.checks)
        return machine

    def target(self, machine: Any) -> targets.Target:
        """Return what is fuzzed on a machine."""
        name = module_name(self.module) if self.module and self.module != targets.VMLINUX else ""
        own = [name] if name else []
        if self.harness:
            return targets.harness(machine, self.harness)
        if self.device:
            return targets.device(machine, self.device, self.operation, name)
        if self.syscall:
            return targets.system_call(machine, self.syscall, own)
        if not self.function:
            raise BadInput("?", "nothing to fuzz", "FUNCTION, --device, --syscall or --harness")
        return targets.function(machine, self.function, self.inputs, name)

    def search(self) -> Search:
        """Return what runs inputs, on a new machine."""
        machine = self.open()
        return Search(
            machine,
            self.target(machine),
            exact=self.exact,
            instructions=self.limit,
            seconds=SECONDS,
        )

    def reads(self) -> list[Path]:
        """Return the files and folders that whoever opens it reads."""
        options = self.options
        found = [*files_of_design(options["design"])]
        if options["root"]:
            found.append(Path(options["root"]))
        if self.module and is_file(Path(self.module)):
            found += [Path(self.module), *trees_of([Path(self.module)])]
        if options["kernel"] is not None:
            found += files_of_kernel(options["kernel"], modelled=options["modelled"])
        if self.harness:
            found.append(Path(self.harness.rpartition(":")[0]))
        return found

    def digest(self) -> str:
        """Return the SHA-256 of the module's file, where it is given as one; else empty."""
        path = Path(self.module)
        if self.module and path.is_file():
            return hashlib.sha256(path.read_bytes()).hexdigest()
        return ""


def _modelled(options: Mapping[str, Any]) -> ModelledMachine:
    """Return a machine whose kernel is Python, as options of a command line say."""
    machine = modelled_machine(
        options["arch"], root=options["root"], kernel=options["kernel"], options=options
    )
    for word in options["stubs"]:
        name, _, value = word.partition("=")
        machine.stub(name, int(value or "0", 0))
    return machine


def _is_text(value: object) -> bool:
    return isinstance(value, str)
