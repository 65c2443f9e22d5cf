# SPDX-License-Identifier: GPL-2.0-or-later
"""Booted machines to files and back: `machine.save(path)`, `Machine.resume(path)`.

A file holds what differs from the kernel's boot (`kernels.booted.saved`), so the kernel itself
must be at hand: in the cache, or given. Stubs, probes and traces belong to who looks on, and are
no part of it, as they are none of a snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import attrs

from allocator.types import MemType
from emulator.boards.board import EMULATOR
from emulator.boards.rest import become, rest_of
from emulator.faults import BadCall
from kernels.booted import saved
from kernels.booted.kernel import BootedKernel
from kernels.booted.modules import Inserted, Region
from kernels.booted.reports import every
from kernels.booted.starting import Parameters
from kernels.errors import BadSnapshot
from kernels.log import LogLine
from loader.elf import parse as parse_elf
from loader.errors import LoadError
from machine.booted.module import BootedModule, Keeper, report_of
from machine.booted.sanitizer import BootedSanitizer

_PAGE = 4096
_CONSOLE = 1 << 28  # bytes
_MODULE = 1 << 28  # of a module's file
_MODULES, _LINES = 10_000, 100_000
_ADDRESS = (1 << 64) - 1
_SECONDS = 1e9


class Kept(Keeper, Protocol):
    """A machine, as far as it is kept in a file: its kernel, its modules, its limits."""

    kernel: BootedKernel
    seconds: float | None
    instructions: int | None
    mounted: bool

    @property
    def sanitizer(self) -> BootedSanitizer | None:
        """The checks that it is under; None: there are none."""
        ...

    @property
    def modules(self) -> dict[str, BootedModule]:
        """The modules that are loaded, by name."""
        ...


def save(machine: Kept, path: str | Path) -> None:
    """Write a machine to a file; see `BootedMachine.save`."""
    kernel = machine.kernel
    board, standing = kernel.board, kernel.standing
    if kernel.guest.depth:
        raise BadCall("save", "a call is under way: a handler cannot")
    if board.broken:
        raise BadCall("save", f"{board.broken}; restore a snapshot")
    held = 0 if machine.sanitizer is None else machine.sanitizer.held
    if held:  # the kernel would not know whose they are
        reason = f"{held} objects of the heap are guarded, and no file holds that"
        raise BadCall("save", reason, "free them, or put the machine under checks later")
    pages = board.ram.differing(standing.base)
    memory = b"".join(bytes(board.ram.view[at * _PAGE : (at + 1) * _PAGE]) for at in pages.tolist())
    modules = list(machine.modules.values())
    head = {
        "execmem": _version(),
        "emulator": EMULATOR,
        "kernel": {
            **{name: standing.facts[name] for name in ("image", "name", "release", "arch")},
            "parameters": attrs.asdict(standing.parameters),
            "memory": standing.digest,
        },
        "state": rest_of(board),
        "machine": {
            "mounted": machine.mounted,
            "seconds": machine.seconds,
            "instructions": machine.instructions,
            "told": kernel.told,
            "modules": [_module(module) for module in modules],
        },
    }
    files = {f"module {number}": module.view.data for number, module in enumerate(modules)}
    parts = {
        "pages": pages.astype("<u4").tobytes(),
        "memory": memory,
        "console": bytes(board.wires.console),
    }
    saved.write(path, head, parts | files)


def _module(module: BootedModule) -> dict[str, Any]:
    report, inserted = module.report, module.inserted
    return {
        "name": module.name,
        "file": module.view.name,
        "module": inserted.module,
        "addresses": {str(index): at for index, at in inserted.addresses.items()},
        "regions": {kind.name: [at.address, at.size] for kind, at in inserted.regions.items()},
        "log": [[line.level, line.text] for line in report.log],
    }


def kernel_of(found: saved.Saved) -> tuple[str, str, Parameters]:
    """Return which kernel a file is of: SHA-256 of its image, its name, how it was booted.

    Raises
    ------
    BadSnapshot
        The file does not say, or another version of this program or the emulator wrote it.
    """
    for what, name, here in (("execmem", "execmem", _version()), ("emulator", "Unicorn", EMULATOR)):
        other = found.head.get(what)
        if other != here:
            reason = f"was saved by {name} {other!s:.40}, and this is {here}: save it again"
            raise BadSnapshot(found.name, reason)
    try:
        kernel = found.head["kernel"]
        image, name, given = kernel["image"], kernel["name"], kernel["parameters"]
        parameters = Parameters(
            memory=given["memory"],
            command_line=given["command_line"],
            cpu=given["cpu"],
            without=tuple(map(str, given.get("without", ()))),
            kaslr=None if given.get("kaslr") is None else _number(given["kaslr"]),
        )
        words = (image, name, kernel["memory"], parameters.command_line, parameters.cpu)
        _require(all(isinstance(word, str) for word in words), "words")
        _number(parameters.memory)
    except (KeyError, TypeError, ValueError):
        raise BadSnapshot(found.name, "does not say which kernel it is of") from None
    return image, name, parameters


def resume(machine: Kept, found: saved.Saved) -> None:
    """Let a machine whose kernel has just been booted become the one in a file.

    Raises
    ------
    BadSnapshot
        It is of another kernel, or not what `save` writes; nothing has changed then.
    """
    standing, board = machine.kernel.standing, machine.kernel.board
    image, name, _ = kernel_of(found)
    if standing.facts["image"] != image:
        raise BadSnapshot(
            found.name, f"is of another kernel: of {name}, not of {standing.facts['name']}"
        )
    if standing.digest != found.head["kernel"]["memory"]:
        reason = f"is of a boot of {name} that is another here: this execmem is not the same"
        raise BadSnapshot(found.name, reason)
    try:
        pages, memory = _memory(found, board.ram.size // _PAGE)
        console = found.part("console", _CONSOLE)
        beside = found.head["machine"]
        mounted, seconds, told = (beside[key] for key in ("mounted", "seconds", "told"))
        instructions = beside["instructions"]
        _require(instructions is None or _number(instructions) > 0, "instructions")
        _require(isinstance(mounted, bool) and _number(told) <= len(console), "machine")
        limited = isinstance(seconds, int | float) and 0 < seconds < _SECONDS
        _require(seconds is None or limited, "seconds")
        modules = list(_modules(machine, found, beside["modules"]))
        become(board, found.head.get("state"))
    except (KeyError, TypeError, ValueError, LoadError) as error:
        said = f" ({error})" if str(error) else ""
        raise BadSnapshot(found.name, f"does not hold what it should{said}") from None
    for number, page in enumerate(pages):
        at = page * _PAGE
        board.ram.view[at : at + _PAGE] = memory[number * _PAGE : (number + 1) * _PAGE]
    board.wires.console[:] = console
    board.wires.kept = 0
    board.forget_code()
    board.forget_addresses()
    machine.kernel.told = told
    machine.mounted = mounted
    machine.seconds, machine.instructions = seconds, instructions
    machine.modules.clear()
    machine.modules.update((module.name, module) for module in modules)


def _memory(found: saved.Saved, most: int) -> tuple[list[int], memoryview]:
    """Return the numbers of pages, each once and in order, and their contents."""
    numbers = memoryview(found.part("pages", 4 * most))
    _require(len(numbers) % 4 == 0, "pages")
    pages = numbers.cast("I").tolist()
    memory = found.part("memory", most * _PAGE)
    _require(all(low < high for low, high in pairwise(pages)), "pages")
    _require(not pages or pages[-1] < most, "pages")
    _require(len(memory) == len(pages) * _PAGE, "pages")
    return pages, memoryview(memory)


def _modules(machine: Kept, found: saved.Saved, given: object) -> Iterator[BootedModule]:
    for number, each in enumerate(_list(given, _MODULES)):
        name, file = (_text(each[key]) for key in ("name", "file"))
        image = found.part(f"module {number}", _MODULE)
        view = parse_elf(image, file)
        inserted = Inserted(
            result=0,
            addresses={int(index): _number(at) for index, at in dict(each["addresses"]).items()},
            module=_number(each["module"]),
            regions={
                MemType[kind]: Region(*(_number(part) for part in _pair(at)))
                for kind, at in dict(each["regions"]).items()
            },
        )
        pairs = (_pair(line) for line in _list(each["log"], _LINES))
        log = tuple(LogLine(_number(level) & 7, _text(text)) for level, text in pairs)
        release, told = machine.kernel.release, tuple(every(line.text for line in log))
        report = report_of(machine.arch, release, name, view, inserted, log, told)
        module = BootedModule(machine, view, name, inserted, report)
        yield module


def _list(value: Any, most: int) -> list[Any]:
    _require(isinstance(value, list) and len(value) <= most, "a list is none")
    found: list[Any] = value
    return found


def _pair(value: Any) -> list[Any]:
    _require(isinstance(value, list) and len(value) == 2, "a pair is none")
    found: list[Any] = value
    return found


def _text(value: Any) -> str:
    _require(isinstance(value, str), "a text is none")
    return str(value)


def _number(value: Any) -> int:
    number = isinstance(value, int) and not isinstance(value, bool)
    _require(number and 0 <= value <= _ADDRESS, "a number is none")
    return int(value)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _version() -> str:
    try:
        return version("execmem")
    except PackageNotFoundError:
        return ""


class Savable:
    """A machine that can be kept in a file."""

    def save(self: Any, path: str | Path) -> None:
        """Write the machine, as it is between two calls, to a file.

        The file holds what differs from the kernel's boot: memory, registers, modules, log,
        guest time. It does not hold the kernel, nor stubs, probes and traces.

        Parameters
        ----------
        path
            Is replaced, if it is there.

        Raises
        ------
        BadCall
            A call is under way, or the machine can only go back.
        BadSnapshot
            It cannot be written.
        """
        save(self, path)
