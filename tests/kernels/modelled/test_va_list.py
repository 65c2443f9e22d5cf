# SPDX-License-Identifier: GPL-2.0-or-later
"""Functions that take a va_list get it as each architecture passes one.

The guest's side is compiled C (va_list.c), once prebuilt and, where there is a compiler, as it
builds it now; what a message should look like says the host's own snprintf.
"""

from __future__ import annotations

import ctypes
import functools
import random
import struct
import tempfile
from pathlib import Path

import pytest

import archs
from allocator.types import MemType
from kernels.modelled.table import FUNCTIONS
from machine.face import Machine
from tests.archs.facts import facts
from tests.support.tools import cross, run

SOURCE = Path(__file__).with_name("va_list.c")
GFP_KERNEL = 0xCC0
ROOM = 1024
COMMON = (
    "-ffreestanding -fno-pie -no-pie -fno-stack-protector -fno-asynchronous-unwind-tables"
    " -nostdlib -static -Wl,--build-id=none -Wl,-e,relay"
)


class Relay:
    """A machine with the functions of va_list.c in it, and memory to work with."""

    def __init__(self, arch, offsets, code):
        self.machine = machine = Machine(arch)
        room = len(code(0x1000))
        pending = machine.execmem.alloc(MemType.TEXT, room)
        pending.write(0, code(pending.address).ljust(room, b"\0"))
        at = pending.finish().address
        self.functions = {name: at + offset for name, offset in offsets.items()}
        self.fixed = machine.alloc(64)
        self.buffer = machine.alloc(ROOM)
        self.page = machine.memory.alloc_pages(0)
        self.file = machine.alloc(256)

    def kernel(self, name):
        """Return the address of a kernel function."""
        return self.machine.kernel.address(name)

    def call(self, name, *args, fixed):
        """Call a function of va_list.c with the numbers `fixed` in memory."""
        self.machine.write(self.fixed, struct.pack(f"<{len(fixed)}Q", *fixed))
        return self.machine.call(self.functions[name], *args)

    def text(self, address):
        """Return the string at an address."""
        return self.machine.kernel.string(address).decode("latin-1")

    def strings(self, *texts):
        """Return the addresses of strings that stay."""
        return [self.machine.alloc(text.encode("latin-1") + b"\0") for text in texts]

    def new_file(self):
        """Make struct seq_file with an empty buffer."""
        self.machine.write(self.file, struct.pack("<4Q", self.buffer, ROOM, 0, 0).ljust(256, b"\0"))
        self.machine.write(self.buffer, bytes(ROOM))
        return self.file

    def logged(self):
        """Return the text of the log's last line."""
        self.machine.kernel.flush_log()
        return self.machine.log[-1].text


@functools.cache
def _relay(name, optimisation):
    if not optimisation:
        known = facts(name).run.va_list_code
        if known is None:
            pytest.skip(f"code of {name} depends on its place")
        offsets, code = known
        return Relay(name, offsets, lambda _at: bytes.fromhex(code))
    offsets, code = _built(name, optimisation, 0x1000)
    return Relay(name, offsets, lambda at: _built(name, optimisation, at)[1])


def _built(name, optimisation, start):
    """Return what the compiler makes of va_list.c for an address, or skip."""
    machine = archs.arch(name).machine
    with tempfile.TemporaryDirectory() as folder:
        out, flat = Path(folder, "out"), Path(folder, "flat")
        flags = [
            *facts(name).run.va_list_flags.split(),
            *COMMON.split(),
            f"-Wl,-Ttext={start:#x}",
            optimisation,
        ]
        run(cross(machine, "gcc"), *flags, SOURCE, "-o", out)
        run(cross(machine, "objcopy"), "-O", "binary", "-j", ".text", out, flat)
        names = [line.split() for line in run(cross(machine, "nm"), out).splitlines()]
        code = flat.read_bytes()
    wanted = ("relay", "wrap", "nested")
    return {n: int(at, 16) - start for at, _, n in names if n in wanted}, code


@pytest.fixture(params=["", "-O0", "-O2"], ids=["prebuilt", "O0", "O2"])
def relay(arch, request):
    """Return a machine with va_list.c, prebuilt and as the compiler builds it."""
    return _relay(arch.name, request.param)


# Messages ---------------------------------------------------------------------------------------

# Conversion, C type of its argument, values.
INTS = (0, 1, -1, 42, -(1 << 31), (1 << 31) - 1, 0x5A)
WORDS = (*INTS, 1 << 32, -(1 << 63), (1 << 63) - 1, 0x0123_4567_89AB_CDEF)
TEXTS = ("", "x", "eth0", "a longer string")
CONVERSIONS = (
    *((f"%{c}", ctypes.c_int, INTS) for c in ("d", "i", "u", "x", "X", "o", "5d", "-7d", "08x")),
    *((f"%{c}", ctypes.c_int, INTS) for c in ("hd", "hu", "hhd", "hhu", "hx")),
    *((f"%{c}", ctypes.c_long, WORDS) for c in ("ld", "lu", "lx", "lld", "llu", "llx", "zd", "zu")),
    ("%c", ctypes.c_int, (65, 122)),
    *((f"%{c}", ctypes.c_char_p, TEXTS) for c in ("s", "8s", "-6s", ".2s")),
)


def message(chance, count):
    """Return a format of `count` conversions and its arguments as (C type, value)."""
    chosen = [chance.choice(CONVERSIONS) for _ in range(count)]
    fmt = "|".join(["x", *(conversion for conversion, _, _ in chosen)])
    return fmt, [(kind, chance.choice(values)) for _, kind, values in chosen]


def expected(fmt, args):
    """Return what the host's snprintf forms."""
    buffer = ctypes.create_string_buffer(ROOM)
    values = [kind(v.encode() if isinstance(v, str) else v) for kind, v in args]
    ctypes.CDLL(None).snprintf(buffer, ctypes.c_size_t(ROOM), fmt.encode(), *values)
    return buffer.value.decode("latin-1")


def slots(relay, chance, args):
    """Return the arguments as 64-bit slots; what is above an int's 32 bits is arbitrary."""
    found = []
    for kind, value in args:
        if isinstance(value, str):
            found += relay.strings(value)
        elif kind is ctypes.c_int and not relay.machine.arch.runs.calling.sign_extend_32:
            found.append(value & 0xFFFF_FFFF | chance.getrandbits(32) << 32)
        else:
            found.append(value & (1 << 64) - 1)
    return found


# Function -> what comes before the format, and where the message is.
TAKE_A_LIST = {
    "vsnprintf": (lambda r: (r.buffer, ROOM), lambda r, _: r.text(r.buffer)),
    "vscnprintf": (lambda r: (r.buffer, ROOM), lambda r, _: r.text(r.buffer)),
    "vsprintf": (lambda r: (r.buffer,), lambda r, _: r.text(r.buffer)),
    "vprintk": (lambda r: (), lambda r, _: r.logged()),
    "kvasprintf": (lambda r: (GFP_KERNEL,), lambda r, result: r.text(result)),
    "kvasprintf_const": (lambda r: (GFP_KERNEL,), lambda r, result: r.text(result)),
    "seq_vprintf": (lambda r: (r.new_file(),), lambda r, _: r.text(r.buffer)),
}
# The same for functions of variable arguments, which may be given %pV.
TAKE_ARGUMENTS = {
    "snprintf": TAKE_A_LIST["vsnprintf"],
    "scnprintf": TAKE_A_LIST["vscnprintf"],
    "sprintf": TAKE_A_LIST["vsprintf"],
    "sysfs_emit": (lambda r: (r.page,), lambda r, _: r.text(r.page)),
    "sysfs_emit_at": (lambda r: (r.page, 8), lambda r, _: r.text(r.page + 8)),
    "_printk": TAKE_A_LIST["vprintk"],
    "__dynamic_pr_debug": (lambda r: (0,), lambda r, _: r.logged()),
    "kasprintf": TAKE_A_LIST["kvasprintf"],
    "seq_printf": TAKE_A_LIST["seq_vprintf"],
    "_dev_err": (lambda r: (0,), lambda r, _: r.logged().removeprefix("(NULL device *): ")),
    "_dev_printk": (
        lambda r: (*r.strings("\0013"), 0),
        lambda r, _: r.logged().removeprefix("(NULL device *): "),
    ),
}


def test_every_function_that_takes_a_list_is_tested():
    """The table has no function with a va_list that these tests leave out."""
    taking = {
        name
        for name, function in FUNCTIONS.items()
        if any("va_list" in parameter.type.text for parameter in function.prototype.params)
    }
    assert taking == set(TAKE_A_LIST)


@pytest.mark.parametrize("copy", [0, 1], ids=["itself", "copy"])
@pytest.mark.parametrize("name", TAKE_A_LIST)
def test_a_list_by_value(relay, name, copy):
    """Arguments in registers and on the stack, of every width, some taken before, are found."""
    before, found = TAKE_A_LIST[name]
    chance = random.Random(f"{name}{copy}")
    for count in (0, 1, 2, 3, 4, 5, 6, 9, 14):
        fmt, args = message(chance, count)
        for skip in {0, 1, 3, count // 2, 11}:
            fixed = (*before(relay), *relay.strings(fmt))
            given = [0xBAD0_0000_0000_0BAD] * skip + slots(relay, chance, args)
            function = relay.kernel(name)
            result = relay.call(
                "relay", function, relay.fixed, len(fixed), skip, copy, *given, fixed=fixed
            )
            assert found(relay, result) == expected(fmt, args), (fmt, args, skip)


@pytest.mark.parametrize("name", TAKE_ARGUMENTS)
def test_a_list_by_its_address(relay, name):
    """%pV forms a va_format's message and leaves its list, even one that was begun, as it was."""
    before, found = TAKE_ARGUMENTS[name]
    chance = random.Random(name)
    for count in (0, 1, 3, 5, 9):
        fmt, args = message(chance, count)
        for skip in {0, 2, count // 2, 9}:
            fixed = (*before(relay), *relay.strings("<%pV|%pV|%d>"))
            given = [0xBAD0_0000_0000_0BAD] * skip + slots(relay, chance, args)
            function = relay.kernel(name)
            result = relay.call(
                "wrap", function, relay.fixed, len(fixed), skip, *relay.strings(fmt), *given,
                fixed=fixed,
            )  # fmt: skip
            text = expected(fmt, args)
            assert found(relay, result) == f"<{text}|{text}|77>", (fmt, args, skip)


def test_a_list_inside_a_list(relay):
    """%pV in the message of a %pV has its own arguments, and what follows follows."""
    chance = random.Random(1)
    for count in (0, 1, 5, 9, 12):
        fmt, args = message(chance, count)
        fixed = (relay.buffer, ROOM, *relay.strings("<%pV,%d>", "[%d,%pV,%d]"))
        given = slots(relay, chance, args)
        relay.call(
            "nested", relay.kernel("snprintf"), relay.fixed, *relay.strings(fmt), *given,
            fixed=fixed,
        )  # fmt: skip
        assert relay.text(relay.buffer) == f"<[5,{expected(fmt, args)},6],77>", (fmt, args)
