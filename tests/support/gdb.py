# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests of the gdb server need: a guest that is none, a client, and gdb itself."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from archs import Arch
from emulator.faults import BadCall
from machine.control import Control, Register, Resume, Stopped, Why
from machine.gdb.session import Session
from machine.gdb.subject import Present, Subject, Task
from machine.gdb.wire import Link, Lost

BASE, SIZE = 0xFFFF_FFFF_8000_0000, 0x1000  # of memory


class FakeControl(Control):
    """A CPU that executes nothing, and a little memory."""

    def __init__(self, arch: Arch) -> None:
        calling = arch.runs.calling
        self._pc = calling.program_counter
        described = [r for f in arch.debugs.features for r in f.registers if r.source is not None]
        self._registers = {
            r.source or r.name: Register(r.source or r.name, r.bits, "general") for r in described
        }
        self.values = dict.fromkeys(self._registers, 0)
        self.values[self._pc] = BASE
        self.memory = bytearray(SIZE)
        self.points: set[int] = set()
        self.watched: set[tuple[int, int, str]] = set()

    @property
    def breakpoints(self) -> frozenset[int]:
        """Addresses."""
        return frozenset(self.points)

    def break_at(self, address: int) -> None:
        """Note it."""
        self.points.add(address)

    def unbreak(self, address: int) -> None:
        """Forget it."""
        self.points.discard(address)

    def watch(self, address: int, size: int, kind: str = "w") -> None:
        """Note it, where there is memory."""
        self.read(address, size)
        self.watched.add((address, size, kind))

    def unwatch(self, address: int, size: int, kind: str = "w") -> None:
        """Forget it."""
        self.watched.discard((address, size, kind))

    def interrupt(self) -> None:
        """Fail: nobody asks for it."""
        raise NotImplementedError

    @property
    def registers(self) -> Mapping[str, Register]:
        """Those that the architecture describes."""
        return self._registers

    def get(self, name: str) -> int:
        """Return a value."""
        if name not in self.values:
            raise BadCall(name, "no such register")
        return self.values[name]

    def set(self, name: str, value: int) -> None:
        """Set a value that fits."""
        if value >> self._registers[name].bits:
            raise BadCall(name, "does not fit")
        self.values[name] = value

    @property
    def pc(self) -> int:
        """The program counter."""
        return self.values[self._pc]

    @pc.setter
    def pc(self, address: int) -> None:
        self.values[self._pc] = address

    def read(self, address: int, size: int) -> bytes:
        """Return memory."""
        at = address - BASE
        if size < 0 or at < 0 or at + size > SIZE:
            raise BadCall("read", f"nothing is mapped at {address:#x}")
        return bytes(self.memory[at : at + size])

    def write(self, address: int, data: bytes) -> None:
        """Store in memory."""
        self.read(address, len(data))
        self.memory[address - BASE : address - BASE + len(data)] = data

    @property
    def cpus(self) -> int:
        """Two."""
        return 2

    @property
    def history(self) -> str:
        """Nothing is against it."""
        return ""


class FakeMachine:
    """A machine, as far as a session asks it for something."""

    def __init__(self, arch: Arch, control: FakeControl) -> None:
        self.arch = arch
        self.log: list[Any] = []
        self.modules: dict[str, Any] = {}
        self.read = control.read

    def symbolize(self, address: int) -> str | None:
        """Return a name."""
        return f"somewhere+{address - BASE:#x}"


class FakeSubject(Subject):
    """What a debugger is shown of it."""

    machine: Any

    title = "/kernel"
    cpus = 2
    present: tuple[Present, ...] = ()

    def modules(self) -> Iterable[Present]:
        """Return what the test gives."""
        return self.present

    def symbols(self) -> bytes:
        """Return bytes that must be escaped."""
        return b"\x7fELF}$#*" * 100

    def kernel_symbol(self, name: str) -> int | None:
        """Return one that there is."""
        return BASE if name == "start" else None

    def tasks(self, sp: int) -> tuple[Task, ...]:
        """Return one whose name must be quoted."""
        del sp
        return (Task(7, 'a"<&task', BASE),)

    def of_task(self, task: Task) -> Mapping[str, int]:
        """Return its stack pointer only."""
        del task
        return {self.arch.debugs.stack: BASE}


@contextmanager
def session(arch: Arch) -> Iterator[tuple[Session, FakeControl, socket.socket]]:
    """Give a session over a guest that is none, and the debugger's end of its connection."""
    control = FakeControl(arch)
    near, far = socket.socketpair()
    subject = FakeSubject(FakeMachine(arch, control))  # type: ignore[arg-type] # as far as needed
    with near, far:
        yield Session(Link(near), subject), control, far


def stop(made: Session, control: FakeControl, packets: bytes, far: socket.socket) -> Resume | None:
    """Let a session serve packets at a stop until the connection ends; None: it ended."""
    far.sendall(packets)
    far.shutdown(socket.SHUT_WR)
    try:
        return made.stop(Stopped(why=Why.ENTRY, pc=control.pc, function=control.pc), control)
    except Lost:
        return None


def received(far: socket.socket) -> bytes:
    """Return what a session has sent."""
    far.settimeout(5)
    data = bytearray()
    while piece := far.recv(1 << 16):
        data += piece
    return bytes(data)


# gdb itself ----------------------------------------------------------------------------------------

PROGRAM = "gdb-multiarch"
_SECONDS = 120  # that a gdb may take on a busy machine


def drive(
    machine: Any, work: Callable[[], object], commands: Sequence[str], **how: Any
) -> list[str]:
    """Return what gdb prints that carries commands out while `work` calls into a machine.

    How to wait for it is what `Machine.gdb` takes. It must end well.
    """
    if shutil.which(PROGRAM) is None:
        pytest.skip(f"{PROGRAM} is not installed")
    words = [PROGRAM, "-nx", "-batch", "-ex", "set confirm off", "-ex", "set width 0"]
    started: list[subprocess.Popen[str]] = []

    def on_wait(server: Any) -> None:
        for command in (f"target remote {server.address}", *commands):
            words.extend(("-ex", command))
        started.append(
            subprocess.Popen(
                words,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,  # where what the server says goes
                stdin=subprocess.DEVNULL,
                text=True,
            )
        )

    with machine.gdb(on_wait=on_wait, **how):
        work()
    (process,) = started
    with process:
        said, _ = process.communicate(timeout=_SECONDS)
    assert process.returncode == 0, said
    assert "Error while mapping" not in said, said  # gdb takes a file of ours for none
    return said.splitlines()


def frames(lines: Iterable[str]) -> list[list[str]]:
    """Return the functions of each backtrace among what gdb printed, innermost first."""
    found: list[list[str]] = []
    for line in lines:
        match = re.match(r"#(\d+) +(?:0x[0-9a-f]+ in )?([\w.]+) \(", line)
        if match:
            if match[1] == "0":
                found.append([])
            found[-1].append(match[2])
    return found


def values(lines: Iterable[str]) -> list[str]:
    """Return what gdb's `print` gave, in order."""
    return [line.partition(" = ")[2] for line in lines if re.match(r"\$\d+ = ", line)]
