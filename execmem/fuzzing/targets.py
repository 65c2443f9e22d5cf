# SPDX-License-Identifier: GPL-2.0-or-later
"""What is fuzzed: a function, a device, a system call, or whatever a function of Python does."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from traceback import extract_tb
from typing import Any

import attrs

from allocator.errors import ExecmemError
from emulator.disassembly import Disassembler
from emulator.faults import BadCall
from execmem.fuzzing.inputs import MOST, BadInput, Input, Layout, layout
from loader.elfview import SHF_EXECINSTR
from machine.rounds import PAGE, Buffer, Rounds

VMLINUX = "vmlinux"
_CONSTANT = re.compile(r"[#,]\s*#?(-?(?:0x[0-9a-f]+|\d+))\b")
_STRING = re.compile(rb"[\x20-\x7e]{3,24}(?=\0)")
_HERE = -100  # AT_FDCWD (uapi/linux/fcntl.h)
_PATIENCE = 10
_DEVICE = 1 << 16  # bytes that a device is asked for or given, at most
_WORDS = 400  # at most
Harness = Callable[[Any, bytes], object]
Span = tuple[int, int]


@attrs.define(eq=False)
class Target:
    """What is done with an input.

    Parameters
    ----------
    title
        What is fuzzed, for people.
    spans
        Code whose blocks count.
    work
        Returns what runs an input: a function without arguments, which calls the guest.
    most
        Bytes of an input.
    seeds
        Inputs to begin with.
    fields
        Numbers at fixed places of an input: offset and size.
    words
        What the code compares with, as far as that can be read out of it.
    patience
        How many times the limit of instructions it may take, as Python beside it takes time, too.
    described
        Returns what an input stands for, in words.
    """

    title: str
    spans: tuple[Span, ...]
    work: Callable[[Rounds, bytes], Callable[[], int]]
    most: int = MOST
    seeds: Sequence[bytes] = (b"", bytes(8), b"A" * 64)
    fields: Sequence[tuple[int, int]] = ()
    words: Sequence[bytes] = ()
    patience: int = 1
    described: Callable[[bytes], str] = lambda data: f"{len(data)} bytes"
    prepare: Callable[[Rounds], None] = lambda _rounds: None


def function(machine: Any, name: str, words: Sequence[str], module: str = "") -> Target:
    """Return a function as a target.

    Parameters
    ----------
    machine
        The machine; the module is loaded.
    name
        The function's.
    words
        Its inputs, `NAME=KIND` each; where types are known, what is obvious may be left out.
    module
        Whose it is; empty or `vmlinux`: the kernel's.

    Raises
    ------
    BadCall
        There is no such function.
    BadInput
        It is not known what to call it with.
    """
    own = module not in ("", VMLINUX)
    if own and module not in machine.modules:
        raise BadCall(name, f"module {module} is not loaded")
    owner = machine.modules[module] if own else machine
    address = owner.address_of(name) if own else _kernel_function(machine, name)
    known = owner.functions.get(name)
    prototype = None if known is None else known.prototype
    parameters = None if prototype is None or known is None else known.parameters
    types = machine.type if machine.btf else None
    made = layout(words, parameters, types)
    buffers: dict[str, Buffer] = {}

    def prepare(rounds: Rounds) -> None:
        for each in made.inputs:
            if each.kind in ("bytes", "struct", "out"):
                buffers[each.name] = rounds.buffer(max(each.high, each.size, 1))

    def work(rounds: Rounds, data: bytes) -> Callable[[], int]:
        values = made.values(data)

        def run() -> int:
            slots = [
                value if isinstance(value, int) else buffers[key].put(value, aligns[key])
                for key, value in values.items()
            ]
            return rounds.call(address, slots)

        return run

    aligns = {each.name: 1 if each.kind == "bytes" else 8 for each in made.inputs}
    spans = spans_of(machine, [module] if own else [])
    return Target(
        title=f"{module}:{name}" if own else name,
        spans=spans,
        work=work,
        most=made.most,
        seeds=made.seeds(),
        fields=made.fields,
        words=words_of(machine, spans if own else ()),
        described=lambda data: _call_text(name, made, data),
        prepare=prepare,
    )


def _kernel_function(machine: Any, name: str) -> int:
    function = getattr(machine, "function", None)
    if function is None:
        raise BadCall(name, "functions of a modelled kernel are Python: give a module")
    return int(function(name))


def _call_text(name: str, made: Layout, data: bytes) -> str:
    parts = [
        f"{key}={value:#x}" if isinstance(value, int) else f"{key}=<{len(value)} bytes>"
        for key, value in made.values(data).items()
    ]
    return f"{name}({', '.join(parts)})"


def python(machine: Any, harness: Harness, title: str, modules: Sequence[str] = ()) -> Target:
    """Return what a function of Python does, called with the machine and an input, as a target.

    Parameters
    ----------
    modules
        Whose code counts; none: all that are loaded, or else the kernel's.
    """

    def work(_rounds: Rounds, data: bytes) -> Callable[[], int]:
        def run() -> int:
            found = harness(machine, data)
            return found if isinstance(found, int) else 0

        return run

    spans = spans_of(machine, modules or list(machine.modules))
    words = words_of(machine, spans)
    return Target(title=title, spans=spans, work=work, words=words, patience=_PATIENCE)


def harness(machine: Any, place: str) -> Target:
    """Return the function of a file, `FILE:FUNCTION`, as a target; its `setup` is called first.

    Raises
    ------
    BadInput
        There is no such file or function, or it cannot be imported.
    """
    path, _, name = place.rpartition(":")
    if not path or not name.isidentifier():
        raise BadInput(place, "expected FILE:FUNCTION")
    names: dict[str, Any] = {"__name__": Path(path).stem, "__file__": path}
    try:
        source = Path(path).read_bytes()
        exec(compile(source, path, "exec"), names)  # noqa: S102 -- it is the user's own
    except (OSError, SyntaxError, ValueError) as error:
        raise BadInput(place, str(error)) from None
    if not callable(names.get(name)):
        raise BadInput(place, f"has no function {name}")
    if callable(names.get("setup")):
        _own(names["setup"], path)(machine)
    return python(machine, _own(names[name], path), f"{Path(path).name}:{name}")


def _own(function: Callable[..., object], path: str) -> Callable[..., object]:
    """Return a user's function whose mistakes are told by their place in the user's file."""

    def called(*arguments: object) -> object:
        try:
            return function(*arguments)
        except ExecmemError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- whatever it is, it is theirs
            lines = [each for each in extract_tb(error.__traceback__) if each.filename == path]
            place = f"{path}:{lines[-1].lineno}" if lines else path
            raise BadInput(place, f"{type(error).__name__}: {error}") from None

    return called


def device(machine: Any, name: str, operation: str, module: str = "") -> Target:
    """Return a device that is open as a target.

    Parameters
    ----------
    name
        As in /dev.
    operation
        `write`, `read` (an input says how much), `ioctl` (its first four bytes are the command, what
        follows is what the argument points at), or `ioctl:COMMAND`.

    Raises
    ------
    ExecmemError
        There is no such device, or it cannot be opened.
    """
    kind, _, number = operation.partition(":")
    if kind not in ("write", "read", "ioctl"):
        raise BadInput("device", f"{operation!r}: expected write, read, ioctl or ioctl:COMMAND")
    command = int(number, 0) if number else None
    file = machine.device(name)
    title, own = f"/dev/{name} {operation}", [module] if module else ()
    if hasattr(machine, "syscall"):
        file.close()
        return _device_of_a_process(machine, name, kind, command, title, own)
    with suppress(AttributeError):
        file.open()
    from kernels.errors import ErrnoError

    def use(_machine: Any, data: bytes) -> int:
        try:
            if kind == "write":
                return int(file.write(data))
            if kind == "read":
                return len(file.read(int.from_bytes(data[:2], "little")))
            if command is not None:
                return int(file.ioctl(command, bytearray(data)))
            return int(file.ioctl(int.from_bytes(data[:4], "little"), bytearray(data[4:] or b"\0")))
        except ErrnoError as error:  # the driver said no
            return -error.error

    return python(machine, use, title, own)


def _device_of_a_process(
    machine: Any, name: str, kind: str, command: int | None, title: str, modules: Sequence[str]
) -> Target:
    """Return a device of a booted kernel as a target: by system calls, in user memory that stays."""
    fd = _opened(machine, "device", f"/dev/{name}")
    ends: list[int] = []

    def prepare(_rounds: Rounds) -> None:
        ends.append(_user(machine, _DEVICE))

    def use(machine: Any, data: bytes) -> int:
        if kind == "read":
            size = int.from_bytes(data[:2], "little")
            return int(machine.syscall("read", fd, ends[-1] - size, size))
        number, held = command, data
        if kind == "ioctl" and command is None:
            number, held = int.from_bytes(data[:4], "little"), data[4:] or b"\0"
        at = ends[-1] - len(held)
        machine.write(at, held)
        if kind == "write":
            return int(machine.syscall("write", fd, at, len(held)))
        return int(machine.syscall("ioctl", fd, number or 0, at))

    found = python(machine, use, title, modules)
    found.prepare = prepare
    return found


def _opened(machine: Any, what: str, path: str) -> int:
    """Return the descriptor of a file that is open from now on; BadInput where it cannot be."""
    machine.open("/proc/version", os.O_RDONLY).close()  # mounts what there is
    found = int(machine.syscall("openat", _HERE, path, os.O_RDWR))
    if found < 0:
        raise BadInput(what, f"{path}: {os.strerror(-found)}")
    return found


def _user(machine: Any, size: int) -> int:
    """Return where user memory ends that stays: to map it anew takes most of a system call's time."""
    size = -(-size // PAGE) * PAGE
    with machine.kernel.watched():
        return int(machine.kernel.guest.user(size)) + size


def system_call(machine: Any, text: str, modules: Sequence[str] = ()) -> Target:
    """Return a system call of a booted kernel as a target: `write:fd=/dev/x,buf=bytes,count=len(buf)`.

    An argument is a path that is opened once, an input as of a function, or text with quotes.

    Raises
    ------
    BadInput
        It is not one, or the kernel that is modelled would have to make it.
    """
    name, _, rest = text.partition(":")
    if not hasattr(machine, "syscall"):
        raise BadInput(text, "system calls are those of a booted kernel: --kernel PATH")
    from execmem.fuzzing.inputs import parse

    inputs: list[Input] = []
    fixed: dict[str, int | str] = {}
    for word in filter(None, rest.split(",")):
        key, _, value = word.partition("=")
        if value.startswith("/"):
            fixed[key] = found = _opened(machine, key, value)
            inputs.append(Input(key, "constant", found))
        elif value[:1] == value[-1:] == "'" and len(value) > 1:
            fixed[key] = value[1:-1]
            inputs.append(Input(key, "constant", 0))
        else:
            inputs.append(parse(word, machine.type if machine.btf else None))
    made = Layout(tuple(inputs))

    ends: dict[str, int] = {}  # where user memory ends that holds an argument

    def prepare(_rounds: Rounds) -> None:
        for each in made.inputs:
            if each.kind in ("bytes", "struct", "out"):
                ends[each.name] = _user(machine, max(each.high, each.size, 1))

    def use(machine: Any, data: bytes) -> int:
        values = {**made.values(data), **fixed}
        for key, end in ends.items():
            held = values[key]
            assert isinstance(held, bytes)
            values[key] = end - len(held)
            machine.write(end - len(held), held)
        return int(machine.syscall(name, *values.values()))

    found_target = python(machine, use, name, modules)
    found_target.prepare = prepare
    found_target.seeds, found_target.fields = made.seeds(), made.fields
    found_target.most = max(made.most, 1)
    found_target.described = lambda data: _call_text(name, made, data)
    return found_target


# What of the code counts ------------------------------------------------------------------------


def spans_of(machine: Any, modules: Sequence[str]) -> tuple[Span, ...]:
    """Return where the code of modules is; without one, the kernel's; without that, all."""
    found: list[Span] = []
    for name in modules:
        view, sections = machine.ground.modules()[name]
        for index, section in sections.items():
            kind = section.type
            if (
                view.sections[index].flags & SHF_EXECINSTR
                and section.size
                and not (kind is not None and kind.is_init)
            ):
                found.append((section.address, section.address + section.size))
    if found:
        return _joined(found)
    text = machine.ground.text()
    return ((text.start, text.stop),) if text else ((0, (1 << 64) - 1),)


def _joined(spans: Sequence[Span]) -> tuple[Span, ...]:
    """Return spans in order, those that lie close to each other as one."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start - found[-1][1] < 64:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return tuple(found)


def words_of(machine: Any, spans: Sequence[Span]) -> list[bytes]:
    """Return constants of instructions, as bytes in both orders: what code may compare with."""
    found: dict[bytes, None] = {}
    disassembler = Disassembler(machine.arch)
    for start, end in spans:
        if end - start > 1 << 20:
            continue
        with suppress(BadCall):
            code = machine.read(start, end - start)
            for _, _, text in disassembler.all(code, start):
                for constant in _CONSTANT.findall(text):
                    number = int(constant, 0)
                    if abs(number) >= 1 << 63:
                        continue
                    size = next(n for n in (1, 2, 4, 8) if abs(number) < 1 << 8 * n)
                    word = (number & (1 << 8 * size) - 1).to_bytes(size, "little")
                    found[word] = found[word[::-1]] = None
    for name in machine.modules:
        view, _ = machine.ground.modules()[name]
        for section in view.sections:
            if section.name.startswith(".rodata") and section.allocated:
                for text_ in _STRING.findall(bytes(view.contents(section))):
                    found[text_] = None
    return list(found)[:_WORDS]


def describe(options: Mapping[str, Any]) -> str:
    """Return what is fuzzed, by the options of a command."""
    return " ".join(str(value) for value in options.values() if value)
