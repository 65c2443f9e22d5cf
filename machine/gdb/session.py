# SPDX-License-Identifier: GPL-2.0-or-later
"""One debugger at one machine: what each packet is answered with, and how the guest goes on.

The guest is under control (`machine.control`), and each stop of it is served here until a packet
lets it go on. Source: gdb's manual, appendix "Remote Serial Protocol".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial

import attrs

from allocator.errors import printable
from archs.levels.debug import ZERO, Debug
from emulator.faults import FaultKind
from machine.control import Control, Resume, Stopped, Why
from machine.gdb import memory
from machine.gdb.features import Description, number_of, value_of
from machine.gdb.memory import BAD, MALFORMED, NO_MEMORY, PAGE, readable
from machine.gdb.monitor import Monitor
from machine.gdb.offers import Offers
from machine.gdb.subject import Subject, Task
from machine.gdb.threads import Threads
from machine.gdb.wire import LONGEST, Link, number, numbers

_SUPPORTED = (
    f"PacketSize={LONGEST:x};QStartNoAckMode+;qXfer:features:read+;qXfer:libraries:read+"
    ";qXfer:exec-file:read+;qXfer:threads:read+;qXfer:memory-map:read+;swbreak+;hwbreak+"
    ";vContSupported+;ReverseStep+;ReverseContinue+"
)
_STACK = (
    1 << 14
)  # bytes around the stack pointer, where no code is: gdb would return to some on x86
_LINE = 1024  # bytes that are printed at once
_RCMD = b"qRcmd,"
_BREAKS, _WATCHES = (0, 1), {2: "w", 3: "r", 4: "rw"}
_WATCH_WORDS = {"w": "watch", "r": "rwatch", "rw": "awatch"}
# gdb's numbers of signals.
_TRAP, _INT = 5, 2
_SIGNALS = {
    FaultKind.READ: 11,
    FaultKind.WRITE: 11,
    FaultKind.FETCH: 11,
    FaultKind.OUT_OF_BOUNDS: 11,
    FaultKind.USE_AFTER_FREE: 11,
    FaultKind.INSTRUCTION: 4,
    FaultKind.TRAP: _TRAP,
    FaultKind.INSTRUCTION_LIMIT: 24,
    FaultKind.TIME_LIMIT: 24,
}
_ABORT = 6
_STEPS = (Resume.STEP, Resume.STEP_BACK, Resume.CONTINUE_BACK)
_UNKNOWN = b""


class Session:
    """A debugger that is connected.

    Parameters
    ----------
    link
        The connection.
    subject
        The machine.
    """

    def __init__(self, link: Link, subject: Subject) -> None:
        self.link = link
        self.subject = subject
        self.monitor = Monitor(subject)
        self.threads = Threads(subject)
        self.offers = Offers(subject, self.threads)
        self._description: Description | None = None
        self._stopped: Stopped | None = None
        self._waits = False  # whether the debugger waits to be told of a stop
        self._last = Resume.CONTINUE
        self._reply = b"S05"
        self._watches: dict[tuple[int, int, str], int] = {}
        self._breaks: dict[int, set[int]] = {}  # address -> kinds of Z
        self._lines = len(subject.machine.log)  # that were shown
        self._calls = 0  # from outside, so far
        self._snapshot: tuple[int, int] | None = None  # call and instruction
        self._restoring = False
        self._commands: dict[bytes, Callable[[bytes, Control], bytes]] = {
            b"g": self._read_registers,
            b"G": self._write_registers,
            b"p": self._read_register,
            b"P": self._write_register,
            b"m": memory.read,
            b"M": partial(memory.write, binary=False),
            b"X": partial(memory.write, binary=True),
            b"Z": partial(self._point, wanted=True),
            b"z": partial(self._point, wanted=False),
            b"H": self._choose_thread,
            b"T": self._is_thread,
            b"q": self._query,
            b"Q": self._set_up,
            b"v": self._verbose,
            b"?": self._why,
        }

    # Stops --------------------------------------------------------------------------------------

    def stop(self, stopped: Stopped, control: Control) -> Resume:
        """Tell the debugger of a stop, and do what it asks for until the guest goes on; `Lost`."""
        if stopped.why is Why.ENTRY and stopped.depth == 1:
            self._calls += 1
        if stopped.why is Why.ENTRY and self._waits and self.link.interrupted():
            stopped = attrs.evolve(stopped, why=Why.INTERRUPTED)  # calls are over too soon to ask
        if not self._restoring and not self._concerns(stopped, control):
            return Resume.CONTINUE if stopped.why in (Why.ENTRY, Why.RETURNED) else self._last
        self._stopped = stopped
        if self._description is None:
            system = {r.name: r.bits for r in control.registers.values() if r.group == "system"}
            self._description = Description(self.subject.arch, system)
        self.threads.stopped(stopped.cpu)
        self.threads.sp = self._register(control, self._described.numbers[self._debug.stack]) or 0
        if self._restoring:
            return self._restored(stopped, control)
        if self._waits and self.offers.stale:
            # The debugger takes the new list, goes on, and is told then why it stopped.
            self._announce(b"T%02xthread:%x;library:;" % (_TRAP, stopped.cpu + 1), control)
            ended = self._serve(control)
            if ended in (Resume.END, Resume.DETACH):
                return ended
        return self._report(stopped, control)

    def _report(self, stopped: Stopped, control: Control) -> Resume:
        self._reply = self._told(stopped, control)
        if self._waits:
            self._announce(self._reply, control)
        self._last = self._serve(control)
        return self._last

    def _restored(self, stopped: Stopped, control: Control) -> Resume:
        """Answer the command that has let the guest go back, and go on serving."""
        self._restoring = False
        said = (
            stopped.reason or f"instruction {stopped.count}; gdb: maintenance flush register-cache"
        )
        self._print(f"{said}\n")
        self.link.send(b"OK")
        self._reply = self._told(stopped, control)
        return self._serve(control)

    def _concerns(self, stopped: Stopped, control: Control) -> bool:
        """Return whether the debugger is told of a stop."""
        if stopped.why is Why.ENTRY:
            if stopped.pc in control.breakpoints:
                return True
            return stopped.depth == 1 and not self._waits
        if stopped.why is Why.RETURNED:
            told = self._last in _STEPS or stopped.pc in self._breaks
            return stopped.depth == 1 and self._waits and told
        return True

    def _announce(self, reply: bytes, control: Control) -> None:
        """Tell the debugger, which waits for it, what was printed and why the guest stopped."""
        self._show_log()
        self._waits = False
        self.link.forget_interrupts()
        self._reply = reply
        del control
        self.link.send(reply)

    def _show_log(self) -> None:
        log = self.subject.machine.log
        self._lines = min(self._lines, len(log))
        new, self._lines = log[self._lines :], len(log)
        for line in new:
            self.say(line.text)

    def say(self, text: str) -> None:
        """Let the debugger show a line, if it waits for the guest."""
        if self._waits:
            self.link.send(b"O" + f"{printable(text)}\n".encode().hex().encode())

    def over(self, status: int) -> None:
        """Tell a debugger that waits that there is nothing more to debug; `Lost`."""
        if self._waits:
            self._show_log()
            self.link.send(b"W%02x" % (status & 0xFF))
            self._waits = False

    def _told(self, stopped: Stopped, control: Control) -> bytes:
        """Return the packet that says why the guest stopped."""
        signal, more = _TRAP, b""
        if stopped.why in (Why.BREAKPOINT, Why.ENTRY):
            kinds = self._breaks.get(stopped.pc, ())
            more = b"" if not kinds else b"swbreak:;" if 0 in kinds else b"hwbreak:;"
        elif stopped.why is Why.WATCHPOINT:
            more = self._watched(stopped)
        elif stopped.why is Why.INTERRUPTED:
            signal = _INT
        elif stopped.why is Why.BEGINNING:
            more = b"replaylog:begin:;"
            if stopped.reason:
                self.say(stopped.reason)
        elif stopped.why is Why.FAULT:
            signal = _signal(stopped.fault)
            self.say(str(stopped.fault))
        elif stopped.why is Why.RETURNED:
            self.say(returned(stopped))
        values = b"".join(
            b"%x:%s;" % (index, self._value(control, index)) for index in self._expedited()
        )
        return b"T%02xthread:%x;%s%s" % (signal, stopped.cpu + 1, more, values)

    def _expedited(self) -> list[int]:
        return [self._described.numbers[name] for name in (self._debug.counter, self._debug.stack)]

    def _watched(self, stopped: Stopped) -> bytes:
        """Return what says which watchpoint an access met: an address in it."""
        for access in stopped.accesses:
            write = access.kind != "read"
            for start, size, kind in self._watches:
                low = max(access.address, start)
                if low < min(access.address + access.size, start + size) and (
                    kind == "rw" or write == (kind == "w")
                ):
                    return b"%s:%x;" % (_WATCH_WORDS[kind].encode(), low)
        return b""

    # Packets ------------------------------------------------------------------------------------

    def _serve(self, control: Control) -> Resume:
        """Answer packets until one lets the guest go on."""
        while True:
            body = self.link.receive()
            found = self._resumed(body, control)
            if isinstance(found, Resume):
                self._waits = not self._restoring and found not in (Resume.DETACH, Resume.END)
                self._last = Resume.CONTINUE if self._restoring else found
                return found
            self.link.send(self.answer(body, control) if found is None else found)

    def answer(self, body: bytes, control: Control) -> bytes:
        """Return the answer to a packet that lets nothing go on, whatever is in it."""
        work = self._commands.get(body[:1])
        if work is None:
            return _UNKNOWN
        try:
            return work(body[1:], control)
        except BAD:
            return MALFORMED

    def _resumed(self, body: bytes, control: Control) -> Resume | bytes | None:
        """Return how a packet lets the guest go on, an answer, or None for another packet."""
        kind = body[:1]
        if body.startswith(_RCMD) and body[len(_RCMD) :].lower() == b"restore".hex().encode():
            return self._restore(control)
        if body in (b"bs", b"bc"):
            return Resume.STEP_BACK if body == b"bs" else Resume.CONTINUE_BACK
        if body.startswith(b"vCont;"):
            return self._actions(body[6:])
        if body.startswith(b"vKill"):
            self.link.send(b"OK")
            return Resume.END
        if kind in (b"c", b"s", b"C", b"S"):
            # A signal is of no use to a kernel; an address may stand alone, or behind one.
            place = body[1:] if kind in (b"c", b"s") else body.partition(b";")[2]
            try:
                if place:
                    control.pc = number(place)
            except BAD:
                return MALFORMED
            return Resume.STEP if kind in (b"s", b"S") else Resume.CONTINUE
        if kind == b"D":
            self.link.send(b"OK")
            return Resume.DETACH
        if kind == b"k":
            return Resume.END
        return None

    def _actions(self, text: bytes) -> Resume | bytes:
        """Return what `vCont` wants of the thread that runs: the first action that means it."""
        mine = self._running + 1
        for action in text.split(b";"):
            word, colon, thread = action.partition(b":")
            if colon and thread not in (b"-1", b"0"):
                try:
                    if number(thread) != mine:
                        continue
                except ValueError:
                    return MALFORMED
            if word[:1] in (b"s", b"S"):
                return Resume.STEP
            if word[:1] in (b"c", b"C"):
                return Resume.CONTINUE
            return MALFORMED
        return MALFORMED if not text else Resume.CONTINUE

    def _why(self, _rest: bytes, _control: Control) -> bytes:
        return self._reply

    # Registers ----------------------------------------------------------------------------------

    @property
    def _debug(self) -> Debug:
        return self.subject.arch.debugs

    @property
    def _described(self) -> Description:
        assert self._description is not None
        return self._description

    def _value(self, control: Control, index: int) -> bytes:
        register = self._described.registers[index]
        return value_of(self._register(control, index), register.bits)

    def _register(self, control: Control, index: int) -> int | None:
        register = self._described.registers[index]
        chosen = self.threads.chosen
        if isinstance(chosen, Task):
            return self._of_task(chosen).get(register.name)
        if register.source in (None, ZERO):
            return None if register.source is None else 0
        if register.name == self._debug.counter and chosen == self._running:
            return control.pc
        name = register.source or register.name
        if chosen != self._running:
            return self.subject.of_cpu(chosen, name)
        return control.get(name) if name in control.registers else None

    @property
    def _running(self) -> int:
        assert self._stopped is not None
        return self._stopped.cpu

    def _of_task(self, task: Task) -> Mapping[str, int]:
        return self.threads.registers(task)

    def _read_registers(self, _rest: bytes, control: Control) -> bytes:
        count = len(self._described.registers)
        return b"".join(self._value(control, index) for index in range(count))

    def _write_registers(self, rest: bytes, control: Control) -> bytes:
        registers, values = self._described.registers, []
        for register in registers:
            size = (register.bits + 7) // 8 * 2
            piece, rest = rest[:size], rest[size:]
            if len(piece) != size:
                return MALFORMED
            values.append(number_of(piece))
        for index, value in enumerate(values):
            if value is not None and self._register(control, index) not in (None, value):
                self._set(control, index, value)
        return b"OK"

    def _read_register(self, rest: bytes, control: Control) -> bytes:
        return self._value(control, self._index(number(rest)))

    def _write_register(self, rest: bytes, control: Control) -> bytes:
        which, _, text = rest.partition(b"=")
        index, value = self._index(number(which)), number_of(text)
        if value is None or len(text) > 2 * ((self._described.registers[index].bits + 7) // 8):
            return MALFORMED
        self._set(control, index, value)
        return b"OK"

    def _index(self, index: int) -> int:
        if index >= len(self._described.registers):
            raise LookupError(index)
        return index

    def _set(self, control: Control, index: int, value: int) -> None:
        register = self._described.registers[index]
        if register.source in (None, ZERO) or self.threads.chosen != self._running:
            raise LookupError(register.name)
        if register.name == self._debug.counter:
            control.pc = value
        else:
            control.set(register.source or register.name, value)

    # Memory -------------------------------------------------------------------------------------

    def _point(self, rest: bytes, control: Control, *, wanted: bool) -> bytes:
        """Set a breakpoint or watchpoint, or take it away."""
        place = rest.partition(b";")[0]  # conditions are the debugger's to look at
        kind, address, size = numbers(place)
        if kind in _BREAKS:
            kinds = self._breaks.setdefault(address, set())
            if wanted:
                if not readable(control, address, 1) or abs(address - self.threads.sp) < _STACK:
                    return NO_MEMORY
                control.break_at(address)
                kinds.add(kind)
            else:
                kinds.discard(kind)
                if not kinds:
                    del self._breaks[address]
                    control.unbreak(address)
            return b"OK"
        if kind not in _WATCHES or not 0 < size <= PAGE:
            return _UNKNOWN if kind not in _WATCHES else MALFORMED
        watch = address, size, _WATCHES[kind]
        if wanted:
            if watch not in self._watches:
                control.watch(*watch)
                self._watches[watch] = kind
        elif self._watches.pop(watch, None) is not None:
            control.unwatch(*watch)
        return b"OK"

    # Threads ------------------------------------------------------------------------------------

    def _choose_thread(self, rest: bytes, _control: Control) -> bytes:
        self.threads.choose(rest[1:], registers=rest[:1] == b"g")
        return b"OK"

    def _is_thread(self, rest: bytes, _control: Control) -> bytes:
        return b"OK" if self.threads.find(rest) is not None else MALFORMED

    # Questions ----------------------------------------------------------------------------------

    def _query(self, rest: bytes, control: Control) -> bytes:
        name = re.split(rb"[:,;]", rest, maxsplit=1)[0]
        argument = rest[len(name) + 1 :]
        if name == b"Supported":
            return _SUPPORTED.encode()
        if name == b"Xfer":
            return self.offers.transfer(argument, self._described)
        if name == b"Rcmd":
            return self._command(argument, control)
        if name == b"C":
            return b"QC%x" % (self._running + 1)
        if name == b"fThreadInfo":
            return b"m" + b",".join(b"%x" % thread for thread in self.threads.numbers)
        if name == b"ThreadExtraInfo":
            return self.threads.title(argument).encode().hex().encode()
        if name == b"Offsets":
            slide = self.subject.slide
            return b"Text=%x;Data=%x;Bss=%x" % (slide, slide, slide) if slide else _UNKNOWN
        if name == b"CRC":
            return memory.checksum(argument, control)
        if name == b"Search" and argument.startswith(b"memory:"):
            return memory.search(argument[len(b"memory:") :], control)
        fixed = {b"Attached": b"1", b"sThreadInfo": b"l", b"Symbol": b"OK"}
        return fixed.get(name, _UNKNOWN)

    def _set_up(self, rest: bytes, _control: Control) -> bytes:
        if rest == b"StartNoAckMode":
            self.link.acknowledges = False
            return b"OK"
        return _UNKNOWN

    def _verbose(self, rest: bytes, _control: Control) -> bytes:
        if rest == b"Cont?":
            return b"vCont;c;C;s;S"
        if rest.startswith(b"File:"):
            return self.offers.files.answer(rest[len(b"File:") :], LONGEST - 64)
        return _UNKNOWN

    def _command(self, text: bytes, control: Control) -> bytes:
        line = bytes.fromhex(text.decode("ascii")).decode("utf-8", "replace")
        assert self._stopped is not None
        if line.strip() == "snapshot":
            self._snapshot = self._calls, self._stopped.count
            return self._said(f"instruction {self._stopped.count} of this call: monitor restore")
        try:
            said = self.monitor.run(line, self._stopped, control)
        except BAD as error:
            said = f"{error}\n"
        self._print(said)
        return b"OK"

    def _said(self, text: str) -> bytes:
        self._print(f"{text}\n")
        return b"OK"

    def _print(self, text: str) -> None:
        """Send what a command says."""
        data = text.encode("utf-8", "replace")
        for at in range(0, len(data), _LINE):
            self.link.send(b"O" + data[at : at + _LINE].hex().encode())

    def _restore(self, control: Control) -> Resume | bytes:
        """Let the guest go back to where `snapshot` was said."""
        if self._snapshot is None or self._snapshot[0] != self._calls:
            self._print("no snapshot of this call: monitor snapshot takes one\n")
            return b"OK"
        control.aim = self._snapshot[1]
        self._restoring = True
        return Resume.GO_BACK


def _signal(fault: Exception | None) -> int:
    kind = getattr(fault, "kind", None)
    return _SIGNALS.get(kind, _ABORT) if isinstance(kind, FaultKind) else _ABORT


def returned(stopped: Stopped) -> str:
    """Return what is said of a call that has returned."""
    result = stopped.result or 0
    return f"returned {result:#x} ({result - (result >> 63 << 64)})"
