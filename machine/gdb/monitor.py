# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of gdb's `monitor`: what a debugger has no words for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

from allocator.errors import ExecmemError
from archs.reloc import Reach, Reloc
from emulator.disassembly import Disassembler
from loader.elfview import SHF_EXECINSTR
from machine.control import Control, Stopped
from machine.gdb.subject import Present, Subject

_LINES = 20  # of the log, where nobody says how many
_SIZES = (16, 4, 2)  # bytes that an instruction is looked for in
_BEFORE = 16  # bytes before an instruction that a relocation in it may begin in

# What a session does itself, which lets the guest run.
_ELSEWHERE = {
    "snapshot": "remember this instruction of the call",
    "restore": "go back there",
}


class Refused(ExecmemError):
    """A command that cannot be carried out."""


class Monitor:
    """Carries commands out.

    Parameters
    ----------
    subject
        The machine.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._disassembler = Disassembler(subject.arch)
        self._commands: dict[str, tuple[str, Callable[..., str], int]] = {
            "help": ("what there is", self._help, 0),
            "where": ("the function that was called, and how far it is", self._where, 0),
            "modules": ("the modules in memory", self._modules, 0),
            "log": ("[N]: the kernel log's last lines", self._log, 1),
            "relocs": ("[ADDRESS]: relocations that fill the instruction", self._relocs, 1),
            "reach": ("[ADDRESS]: how far their fields reach", self._reach, 1),
            "poke": ("ADDRESS HEX: store, whatever is protected, code too", self._poke, 2),
        }

    def run(self, line: str, stopped: Stopped, control: Control) -> str:
        """Return what a command says; ExecmemError, ValueError."""
        name, *words = line.split() or ["help"]
        close = [known for known in self._commands if known.startswith(name)]
        found = self._commands.get(name) or (self._commands[close[0]] if len(close) == 1 else None)
        if found is None:
            raise Refused(f"no command {name!r}; there are {', '.join(self._commands)}")
        if len(words) > found[2]:
            raise Refused(f"{name}: {found[0]}")
        return "".join(f"{text}\n" for text in found[1](stopped, control, *words).split("\n"))

    def _help(self, _stopped: Stopped, _control: Control) -> str:
        texts = {name: text for name, (text, _, _) in self._commands.items()} | _ELSEWHERE
        return "\n".join(f"{name:8} {text}" for name, text in texts.items())

    def _where(self, stopped: Stopped, _control: Control) -> str:
        name = self._name(stopped.function)
        lines = [
            f"{self._name(stopped.pc)}: {stopped.why.value}",
            f"{stopped.count} instructions into {name}, CPU {stopped.cpu}, depth {stopped.depth}",
        ]
        without = self._subject.without_tasks()
        return "\n".join([*lines, without] if without else lines)

    def _name(self, address: int) -> str:
        return f"{address:#x} {self._subject.machine.symbolize(address) or ''}".rstrip()

    def _modules(self, _stopped: Stopped, _control: Control) -> str:
        lines = []
        for module in self._subject.modules():
            placed = [
                (address, module.view.sections[index])
                for index, address in sorted(module.sections.items())
            ]
            text = [at for at, section in placed if section.flags & SHF_EXECINSTR and section.size]
            first = f"{text[0]:#x}" if text else "no text"
            size = sum(section.size for _, section in placed)
            lines.append(
                f"{module.name:24} {module.state.value:8} {first} {size:#x} bytes in memory"
            )
        return "\n".join(lines) or "no modules"

    def _log(self, _stopped: Stopped, _control: Control, count: str = str(_LINES)) -> str:
        wanted = int(count, 0)
        log = self._subject.machine.log
        return "\n".join(line.text for line in log[-wanted:] if wanted > 0) or "nothing is logged"

    def _poke(self, _stopped: Stopped, control: Control, place: str = "", data: str = "") -> str:
        if not data:
            raise Refused("poke: an address, and bytes in hex")
        address, code = self._address(place), bytes.fromhex(data)
        control.write(address, code)
        return f"{len(code)} bytes at {self._name(address)}: {code.hex()}"

    def _address(self, text: str) -> int:
        """Return an address by its number or by a symbol of a module or the kernel."""
        try:
            return int(text, 0)
        except ValueError:
            pass
        for module in self._subject.machine.modules.values():
            if text in module.symbols:
                return module.symbols[text]
        found = self._subject.kernel_symbol(text)
        if found is None:
            raise Refused(f"{text!r} is neither an address nor a symbol")
        return found

    # Relocations --------------------------------------------------------------------------------

    def _relocs(self, stopped: Stopped, control: Control, place: str = "") -> str:
        address = self._address(place) if place else stopped.pc
        lines = [
            f"{at:#x} {self._type(module, kind)} {symbol}{f' {addend:+#x}' if addend else ''}:"
            f" {held}"
            for module, at, kind, symbol, addend, held in self._at(address, control)
        ]
        return "\n".join(lines) or f"no relocation fills the instruction at {self._name(address)}"

    def _reach(self, stopped: Stopped, control: Control, place: str = "") -> str:
        address = self._address(place) if place else stopped.pc
        lines = []
        for module, at, kind, symbol, _, _ in self._at(address, control):
            row = module.view.arch.link.relocations.get(kind)
            reach = None if row is None else row.reach
            name = self._type(module, kind)
            said = "any value fits"
            if row is not None and reach is not None:
                said = _from(reach, at) if row.op.relative else reach.text()
            lines.append(f"{name} of {symbol}: {said}")
        return "\n".join(lines) or f"no relocation fills the instruction at {self._name(address)}"

    def _type(self, module: Present, kind: int) -> str:
        return module.view.arch.link.type_name(kind)

    def _size(self, address: int, control: Control) -> int:
        """Return the bytes of an instruction."""
        for size in _SIZES:
            with suppress(ExecmemError):
                found = self._disassembler.size(control.read(address, size), address)
                if found is not None:
                    return found
        return _SIZES[-1]

    def _at(
        self, address: int, control: Control
    ) -> Iterator[tuple[Present, int, int, str, int, str]]:
        """Yield module, place, type, symbol, addend and bytes of what fills an instruction."""
        size = self._size(address, control)
        for module in self._subject.modules():
            section = module.section_at(address)
            if section is None:
                continue
            view, start = module.view, module.sections[section]
            for table in view.tables:
                if table.target.index != section:
                    continue
                offsets = table.records["offset"]
                offset = address - start
                near = (offsets >= max(offset - _BEFORE, 0)) & (offsets < offset + size)
                for record in table.records[near]:
                    kind, at = int(record["type"]), start + int(record["offset"])
                    row = view.arch.link.relocations.get(kind)
                    held = control.read(at, _width(row))
                    if at + len(held) <= address and at != address:
                        continue
                    symbol = view.symbol_name(int(record["symbol"]))
                    addend = int(record["addend"])
                    addend -= addend >> 63 << 64
                    yield module, at, kind, symbol, addend, held.hex(" ")


def _width(row: Reloc | None) -> int:
    """Return the bytes that a relocation fills."""
    parts = () if row is None else row.parts
    return max((part.offset + part.size for part in parts), default=1)


def _from(reach: Reach, place: int) -> str:
    low, high = place + reach.lo, place + reach.hi
    multiple = f", in steps of {reach.align}" if reach.align > 1 else ""
    return f"[{low:#x}, {high:#x}), {reach.text()} from here{multiple}"
