# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel image, its symbols and what stands behind them, per-cpu memory, and the log."""

from __future__ import annotations

import attrs
import pytest

from allocator import AllocationError, Prot
from allocator.types import ADDRESS_MASK, LARGE_PAGE_SIZE, PAGE_SIZE
from archs import Anchor
from emulator.faults import BadCall
from kernels.log import LogLine
from kernels.modelled.percpu import CANARY, PERCPU_SIZE, PERCPU_STATIC
from kernels.modelled.table import DATA, FUNCTIONS
from machine.face import Machine
from samples import modules
from tests.archs.facts import facts
from tests.machine.snippets import snippet


@pytest.fixture
def machine(arch):
    """Return a machine of each architecture."""
    return Machine(arch)


@pytest.fixture
def kernel(machine):
    """Return the machine's kernel."""
    return machine.kernel


# The image -----------------------------------------------------------------------------------


def test_the_image_lies_where_the_architecture_says(arch, kernel):
    """The image is the address map's, and every symbol lies in it or in the per-cpu area."""
    assert kernel.image == arch.loads.address_map().image
    for name in ("strlen", "_printk", "nobody_has_this"):
        assert kernel.address(name) in kernel.image


def test_nothing_of_the_kernel_is_writable_and_executable(machine):
    """No frame of the image is executable at one address and writable at another."""
    table = machine.memory.page_table
    assert not table.wx_aliases()
    for leaf in table.leaves(machine.kernel.image):
        assert leaf.prot in (Prot.RX, Prot.X, Prot.RW)
    machine.check()


def test_stubs_are_execute_only(machine):
    """A stub can be executed and neither read nor written."""
    at = machine.kernel.address("strlen")
    assert machine.memory.translate(at).prot is Prot.X


def test_guest_code_of_the_architecture(arch, machine):
    """Kernel functions that are plain instructions are in the image, and no callback serves them."""
    for name, code in arch.runs.emulation.code.items():
        at = machine.kernel.address(name)
        assert machine.read(at, len(code)) == code
        assert machine.kernel.knows(name)
        with pytest.raises(BadCall, match="guest code"):
            machine.stub(name)


def test_the_canary_stands_where_code_reads_it(arch, machine):
    """The stack protector's canary is found by the register and offset of the ABI."""
    assert CANARY & 0xFF == 0  # so that no string function copies it
    if arch.runs.emulation.canary is None:
        for name in arch.runs.emulation.guard_globals:
            assert machine.kernel.word(machine.kernel.address(name)) == CANARY
        return
    anchor, structure = arch.runs.emulation.canary
    offset = machine.kernel.layouts.offset_of(structure, "stack_canary")
    registers = [name for name, what in arch.runs.emulation.anchors.items() if what is anchor]
    base = machine.cpu.read(registers[0]) & ADDRESS_MASK
    assert anchor in (Anchor.PERCPU, Anchor.CURRENT)
    assert machine.kernel.word(base + offset) == CANARY


def test_an_image_too_small_is_refused(arch):
    """A kernel image without room for stubs and variables is refused by name."""

    def small(kaslr=None, image_size=None):
        return arch.loads.address_map(kaslr, PAGE_SIZE)

    with pytest.raises(ValueError, match="kernel image needs"):
        Machine(attrs.evolve(arch, load=attrs.evolve(arch.loads, address_map=small)))


# Symbols -------------------------------------------------------------------------------------


# Variables of structures that only the kernels of some architectures have.
OTHERS = {"pcpu_hot", "const_pcpu_hot", "boot_cpu_data", "kernel_map"}


def test_every_entry_can_be_addressed(kernel):
    """Every function and variable of the table has one address, its own, and its name there."""
    names = [*FUNCTIONS, *DATA]
    addresses = {name: kernel.address(name) for name in names}
    assert len(set(addresses.values())) == len(names)
    lacks = {*OTHERS, *facts(kernel.arch).load.lacks}
    assert {name for name in names if not kernel.knows(name)} <= lacks
    for name in FUNCTIONS:
        assert kernel.name_at(addresses[name]) == name
    assert all(kernel.address(name) == address for name, address in addresses.items())


def test_an_unknown_symbol_has_an_address_too(kernel):
    """A symbol that nobody has gets a stub, stays unknown, and keeps its address."""
    assert not kernel.knows("nobody_has_this")
    at = kernel.address("nobody_has_this")
    assert not kernel.knows("nobody_has_this")
    assert kernel.address("nobody_has_this") == at
    assert kernel.unknown_at(at + 8) == "nobody_has_this+0x8"
    assert kernel.unknown_at(kernel.address("strlen")) is None


def test_names_of_addresses(kernel):
    """Inside a stub the offset is given, elsewhere in the image the image, outside nothing."""
    at = kernel.address("strlen")
    assert kernel.name_at(at + 1) == "strlen+0x1"
    assert kernel.name_at(kernel.image.end - 1) == "the kernel image"
    assert kernel.name_at(kernel.image.end) is None


def test_a_constant_stub(machine):
    """A symbol may be supplied as a number, before or after it has an address, and again."""
    kernel = machine.kernel
    at = kernel.address("given")
    for value in (7, -1, 0):
        machine.stub("given", value)
        assert machine.call(at) == value & ADDRESS_MASK
    machine.stub("other")
    assert machine.call(kernel.address("other"), 1, 2, 3) == 0
    assert kernel.knows("given")
    assert kernel.calls["given"] == 3


def test_a_stub_stands_in_for_the_kernel(machine):
    """What is supplied goes before what the kernel has."""
    machine.stub("strlen", lambda s: s & 0xFF)
    assert machine.call(machine.kernel.address("strlen"), 0x1234) == 0x34


@pytest.mark.parametrize(
    ("callback", "count"),
    [
        (lambda: 0, 0),
        (lambda a: a, 1),
        (lambda a, b, c: a + b + c, 3),
        (lambda a, b=5: a + b, 2),
        (lambda *args: len(args) * 100, 6),
        (lambda a, *, _kept=None: a, 1),
    ],
)
def test_a_callback_gets_what_it_takes(machine, callback, count):
    """A callback gets one unsigned register per parameter; with *args six."""
    machine.stub("taken", callback)
    args = range(1, 9)
    assert machine.call(machine.kernel.address("taken"), *args) == callback(*args[:count])


def test_a_callback_with_a_prototype(machine):
    """With a prototype arguments and result have its types; nothing returned is 0."""
    seen = []

    def typed(*args):
        seen.append(args)
        return -2

    machine.stub("typed", typed, prototype="int typed(int a, u8 b, s64 c, const char *d)")
    at = machine.kernel.address("typed")
    assert machine.call(at, 0xFFFF_FFFF, 0x1FF, -3, 1 << 63, returns="int") == -2
    assert seen == [(-1, 0xFF, -3, 1 << 63)]
    machine.stub("typed", lambda a: None, prototype="u64 typed(u64 a)")
    assert machine.call(at, 5) == 0


def test_a_variadic_prototype(machine):
    """Arguments after the named ones come one slot after the other, from registers, then stack."""

    def total(count, slots):
        return sum(slots.next() for _ in range(count))

    machine.stub("total", total, prototype="u64 total(int count, ...)")
    assert machine.call(machine.kernel.address("total"), 11, *range(1, 12)) == 66


def test_a_32_bit_result_is_extended_as_the_abi_says(arch, machine):
    """An unsigned 32-bit result is sign-extended in the register where the psABI wants it."""
    machine.stub("word", lambda: 0x8000_0001, prototype="u32 word(void)")
    high = 0xFFFF_FFFF if arch.runs.calling.sign_extend_32 else 0
    assert machine.call(machine.kernel.address("word")) == high << 32 | 0x8000_0001


@pytest.mark.parametrize("name", sorted(DATA)[:3])
def test_variables_are_not_supplied(machine, name):
    """A kernel variable cannot be made a function."""
    with pytest.raises(BadCall, match="is a variable"):
        machine.stub(name)


def test_rolling_back(machine):
    """Symbols, variables and objects that came after a mark are forgotten and made anew."""
    kernel = machine.kernel
    kernel.address("strlen")
    before = dict(kernel.symbols)
    mark = kernel.mark()
    made = {name: kernel.address(name) for name in ("nobody_has_this", "memcpy", *DATA)}
    variable = next(name for name, entry in DATA.items() if not entry.percpu and not entry.fill)
    contents = machine.read(made[variable], DATA[variable].size)
    machine.write(made[variable], b"\xff" * DATA[variable].size)
    machine.alloc(100)
    kernel.roll_back(mark)
    assert kernel.symbols == before
    assert {name: kernel.address(name) for name in made} == made
    assert machine.read(made[variable], DATA[variable].size) == contents
    kernel.roll_back(mark)
    kernel.roll_back(kernel.mark())
    assert kernel.symbols == before


# Per-cpu memory ------------------------------------------------------------------------------


def test_per_cpu_memory(machine):
    """Per-cpu memory is aligned, zeroed, apart, written through its copy, and given back."""
    kernel = machine.kernel
    one, two = kernel.percpu.alloc(24, 64), kernel.percpu.alloc(1, 1)
    assert one % 64 == 0
    assert two >= one + 24 or two + 8 <= one
    kernel.percpu.write(one, b"contents")
    assert machine.read(kernel.percpu.address(one), 24) == b"contents".ljust(24, b"\0")
    kernel.percpu.free(one)
    again = kernel.percpu.alloc(24, 64)
    assert again == one
    assert machine.read(kernel.percpu.address(again), 24) == bytes(24)


def test_per_cpu_memory_by_its_register(arch, machine):
    """A symbol plus the register that holds the CPU's offset is where the copy lies."""
    registers = [n for n, what in arch.runs.emulation.anchors.items() if what is Anchor.PERCPU]
    base = machine.kernel.percpu.alloc(8, 8)
    machine.kernel.percpu.write(base, bytes(range(8)))
    for name in registers:
        at = base + machine.cpu.read(name) & ADDRESS_MASK
        assert machine.read(at, 8) == bytes(range(8))


def test_per_cpu_memory_runs_out(machine):
    """Where there is no room left the error says so; all of it comes back in one piece."""
    kernel = machine.kernel
    room = PERCPU_SIZE - PERCPU_STATIC
    with pytest.raises(AllocationError, match="per-cpu memory"):
        kernel.percpu.alloc(room + 8, 8)
    held = [kernel.percpu.alloc(PAGE_SIZE, PAGE_SIZE) for _ in range(room // PAGE_SIZE)]
    with pytest.raises(AllocationError, match="no room left"):
        kernel.percpu.alloc(8, 8)
    for base in held:
        kernel.percpu.free(base)
    kernel.percpu.free(kernel.percpu.alloc(room, 8))


# The log -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "lines"),
    [
        ([b"plain\n"], [(4, "plain")]),
        ([b"\x016info\n", b"\x013error\n"], [(6, "info"), (3, "error")]),
        ([b"\x016one\ntwo\n"], [(6, "one"), (6, "two")]),
        ([b"\x016begin ", b"\x01cmiddle ", b"\x01cend\n"], [(6, "begin middle end")]),
        ([b"\x016begin", b"end\n"], [(6, "begin"), (4, "end")]),
        ([b"\x01calone\n"], [(4, "alone")]),
        ([b"\x016open", b"\x014next\n"], [(6, "open"), (4, "next")]),
        ([b"\x015unended"], [(5, "unended")]),
        ([b"\x016bad \xff\n"], [(6, "bad \ufffd")]),
        ([b"\x016\n"], [(6, "")]),
    ],
)
def test_log_lines(kernel, messages, lines):
    """A line has the level of its first part; KERN_CONT, and nothing else, continues one."""
    heard = []
    kernel.on_log = heard.append
    for message in messages:
        kernel.print(message)
    kernel.flush_log()
    assert kernel.log == heard == [LogLine(level, text) for level, text in lines]


def test_levels_of_a_module(machine):
    """What a module prints is in the log with its level, formatted, and in its report."""
    hello = machine.load(modules.path(machine.arch.name, "hello"))
    assert hello.call("hello_greet", 41) == 42
    expected = [LogLine(6, "hello: Hello, world!"), LogLine(6, "hello: greeting 41")]
    assert machine.log == expected
    assert list(hello.report.log) == expected[:1]


# Guest memory --------------------------------------------------------------------------------


def test_strings_end_at_their_nul(machine):
    """A string is read to its NUL and not beyond, also where the next page is not mapped."""
    kernel = machine.kernel
    end = machine.memory.direct_map.end
    machine.write(end - 4, b"abc\0")
    assert kernel.string(end - 4) == b"abc"
    assert kernel.string(end - 4, 2) == b"ab"
    text = b"x" * (2 * PAGE_SIZE + 5)
    at = machine.alloc(text + b"\0")
    assert kernel.string(at) == text


def test_words(machine):
    """Words are little-endian and cut to their size."""
    kernel, at = machine.kernel, machine.alloc(16)
    kernel.store(at, -2)
    kernel.store(at + 2, 0x12345, 2)
    assert (kernel.word(at), kernel.word(at + 2, 2)) == (0xFFFF_FFFF_2345_FFFE, 0x2345)
    assert machine.call(snippet(machine, "load"), at) == 0xFFFF_FFFF_2345_FFFE


def test_image_size(kernel):
    """The image keeps code, stubs and variables in large pages of their own."""
    leaves = list(kernel.memory.page_table.leaves(kernel.image))
    if kernel.image.start % LARGE_PAGE_SIZE:  # Malta's begins in the middle of one
        assert {leaf.size for leaf in leaves} == {PAGE_SIZE}
    else:
        assert [leaf.size for leaf in leaves] == [LARGE_PAGE_SIZE] * 3


# Time ----------------------------------------------------------------------------------------


def test_loops_that_look_at_jiffies_end(machine):
    """Jiffies pass by being read by the guest, four readings each, and not by Python."""
    at, load = machine.kernel.address("jiffies"), snippet(machine, "load")
    start = machine.kernel.word(at)
    assert [machine.call(load, at) - start for _ in range(9)] == [0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert machine.kernel.word(at) == machine.kernel.word(at) == start + 2
    assert machine.call(load, machine.kernel.address("jiffies_64")) == start + 2
    machine.call(snippet(machine, "store"), at + 8, 0x1234)  # its page is memory all the same
    assert machine.kernel.word(at + 8) == machine.call(load, at + 8) == 0x1234
