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
from kernels.modelled.table import FUNCTIONS
from machine.machine import Machine
from tests.machine.snippets import put
from tests.support.tools import cross, run

SOURCE = Path(__file__).with_name("va_list.c")
GFP_KERNEL = 0xCC0
ROOM = 1024
FLAGS = {
    "x86_64": "-mgeneral-regs-only -mno-red-zone -fcf-protection=none",
    "arm64": "-mgeneral-regs-only -mbranch-protection=none",
    "riscv64": "-mcmodel=medany -march=rv64imac -mabi=lp64",
}
COMMON = (
    "-ffreestanding -fno-pie -no-pie -fno-stack-protector -fno-asynchronous-unwind-tables"
    " -nostdlib -static -Wl,--build-id=none -Wl,-Ttext=0x1000 -Wl,-e,relay"
)

# What gcc 12 -Os makes of va_list.c: where its functions stand, and the code.
PREBUILT = {
    "x86_64": (
        {"relay": 0, "wrap": 0xCA, "nested": 0x19B},
        (
            "534889f84989f24189d331ffba280000004883ec60488d5c24704c894c2458488d7424704531c948"
            "895c2408488d5c2430c704242800000048895c241085c97e1883fa2f770883c20840b701eb074883"
            "c60841b101ffc9ebe44584c9740548897424084084ff74038914244c8d4c24184889e34183fb01b9"
            "060000004c89cf4889def3a5498b3a750f4c89ce4585c075034889deffd0eb2a498b72084183fb02"
            "750f4c89ca4585c075034889daffd0eb13498b52104c89c94585c075034889d9ffd048984883c460"
            "5bc34883ec684989fa4889f04531db488d742470488d7c24304c894c24584531c9c7442418280000"
            "004889742420be2800000048897c2428488d7c247085c97e1883fe2f770883c60841b101eb074883"
            "c70841b301ffc9ebe44584db740548897c24204584c9740489742418488d4c24184c89442408488b"
            "3848894c241083fa017514488d542408b94d00000031c04889d641ffd2eb35488b700883fa027515"
            "488d4c240841b84d00000031c04889ca41ffd2eb194c8d442408488b501041b94d00000031c04c89"
            "c141ffd248984883c468c34883ec68488d44247048894c2448488d4c24084889442420488d442430"
            "4889442428488d4424184c8944245041b8060000004889542408ba05000000488944241031c04c89"
            "4c2458c744241818000000e8070000004883c4684898c34883ec684889f04989fa48894c2448488d"
            "7c2430488d4c24704c8944245041b84d00000048895424404c894c2458488b561848894c2420488d"
            "4c24084889542408488d54241848897c2428488b3831c04889542410488b5610c744241810000000"
            "488b760841ffd24883c468c3"
        ),
    ),
    "arm64": (
        {"relay": 0, "wrap": 0xF8, "nested": 0x1E8},
        (
            "fd7bb7a9e80300aae90301aae0430291fd030091e1430291e00303a9e0c30191e02300f9e0028012"
            "e04b00b9ff4f00b9e59b07a90500805206008052e74700f97f0000714c02005445000034e11b00f9"
            "46000034e04b00b9ea2f43a9ea2f05a95f040071e61f44a9e61f06a9200140f961020054ea2f01a9"
            "e1430091e61f02a900013fd6007c409314000014a000f837212000912500805263040051e9ffff17"
            "002000111f0000716d000054212000912500805226008052f8ffff17210540f95f080071e1000054"
            "ea2f01a9e2430091e61f02a900013fd6fd7bc9a8c0035fd6220940f9ea2f01a9e3430091e61f02a9"
            "00013fd6e4ffff17fd7bbaa9e80300aae90301aae0830191fd03009101008052e00302a9e0030191"
            "e01b00f9e0830191ff3f00b9e59b04a9e502801206008052e53b00b9e72f00f97f0000710c020054"
            "41000034e01300f946000034e53b00b9e0830091e40301a9200140f95f04007161020054e2430091"
            "a3098052e10302aa00013fd6007c409314000014a500f837002000912100805263040051ebffff17"
            "a5200011bf0000716d000054002000912100805226008052f8ffff17210540f95f080071e1000054"
            "e3430091a4098052e20303aa00013fd6fd7bc6a8c0035fd6220940f9e4430091e30304aaa5098052"
            "00013fd6e4ffff17fd7bb9a9fd030091e39304a9e3c30191c4008052e20b00f9e2830091e28f01a9"
            "a2008052e31700f9e3030191e31b00f9e3048012e33b00b9e3430091ff3f00b9e59b05a9e73700f9"
            "04000094007c4093fd7bc7a8c0035fd6fd7bb9a9e80300aae00301aafd030091e1c30191e10702a9"
            "e1030191e20f04a9e3430091e41705a9a4098052e61f06a9e11b00f9e1058012e13b00b9010c40f9"
            "e10b00f9e1830091e10f00f9020840f9ff3f00b9000440a900013fd6fd7bc7a8c0035fd6"
        ),
    ),
    "riscv64": (
        {"relay": 0, "wrap": 0x64, "nested": 0xE0},
        (
            "39713ef43c102e8e3ee406ec2a8342f846fcb68781453e85fd376347a00291c9a2659b87060063d3"
            "060081478e07ae973ee48547a26603350e006319f600b6850293e260216182808545f1b789478335"
            "8e006315f60036860293e5b703360e010293c5b75d713efc3c182e8e3ee406f42a83c2e0c6e4b687"
            "81453e85fd37634ca00291c9a2659b87060063d3060081478e07ae973ee43c003eec3ae885470335"
            "0e00631cf60010089306d004b2850293a270616182808545c9b7894783358e006318f60014081307"
            "d00436860293cdb703360e0118089307d004ba860293c9bf1d71bee43c1836fcbae03ee432e83c00"
            "14081947154606f4c2e8c6ec3eec97000000e780e000a270256182801d7136fcbae0bee432f8c2e8"
            "c6ec1c183ee42a839c6d2e85906908618c653ee814083c001307d00406f43eec0293a27025618280"
        ),
    ),
}


class Relay:
    """A machine with the functions of va_list.c in it, and memory to work with."""

    def __init__(self, arch, offsets, code):
        self.machine = machine = Machine(arch)
        at = put(machine, code)
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
        offsets, code = PREBUILT[name]
        return Relay(name, offsets, bytes.fromhex(code))
    return Relay(name, *_built(name, optimisation))


def _built(name, optimisation):
    """Return what the compiler makes of va_list.c, or skip."""
    machine = archs.arch(name).machine
    with tempfile.TemporaryDirectory() as folder:
        out, flat = Path(folder, "out"), Path(folder, "flat")
        flags = [*FLAGS[name].split(), *COMMON.split(), optimisation]
        run(cross(machine, "gcc"), *flags, SOURCE, "-o", out)
        run(cross(machine, "objcopy"), "-O", "binary", "-j", ".text", out, flat)
        names = [line.split() for line in run(cross(machine, "nm"), out).splitlines()]
        code = flat.read_bytes()
    wanted = ("relay", "wrap", "nested")
    return {n: int(at, 16) - 0x1000 for at, _, n in names if n in wanted}, code


@pytest.fixture(params=["", "-O0", "-O2"], ids=["prebuilt", "O0", "O2"])
def relay(arch, request):
    """Return a machine with va_list.c, prebuilt and as the compiler builds it."""
    if arch.name not in PREBUILT:
        pytest.skip(f"va_list.c is not built for {arch.name}")
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
