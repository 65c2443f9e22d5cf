# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls from outside: arguments go where the ABI says, results come back as C would read them.

Oracles are Python's own arithmetic (zlib, math, struct) and the psABIs' rule that arguments
beyond the registers lie on the stack, eight bytes each.
"""

from __future__ import annotations

import math
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator.types import ADDRESS_MASK
from emulator.faults import BadCall, Fault
from loader.errors import LoadError
from loader.loaded import State
from machine.arguments import Out
from machine.face import Machine
from samples import modules
from tests.machine.snippets import snippet
from tests.support.modules import module as mini_module


@pytest.fixture
def machine(arch):
    """Return a machine of each architecture."""
    return Machine(arch)


@pytest.fixture
def load(machine):
    """Return a function that loads a sample into the machine."""
    return lambda name, **params: machine.load(modules.path(machine.arch.name, name), **params)


def refused(call, *args, **keywords):
    """Return the BadCall that a call raises."""
    with pytest.raises(BadCall) as caught:
        call(*args, **keywords)
    return caught.value


# Arguments -----------------------------------------------------------------------------------


def test_ints_of_every_sign(load):
    """Ints pass as 64-bit two's complement, signed and unsigned alike."""
    tables = load("tables")
    assert tables.call("tables_dispatch", 0, -1, 1) == 0
    assert tables.call("tables_dispatch", 1, 0, 1) == ADDRESS_MASK
    assert tables.call("tables_dispatch", 14, -1, 0) == 1
    assert tables.call("tables_dispatch", 14, -(1 << 63), ADDRESS_MASK) == 1
    assert tables.call("tables_dispatch", 12, ADDRESS_MASK, 5) == 5


@pytest.mark.parametrize("value", [1 << 64, -(1 << 63) - 1])
def test_ints_of_more_than_64_bits_are_refused(load, value):
    """An int that no register holds is refused, not cut."""
    assert "64 bits" in refused(load("tables").call, "tables_dispatch", 0, value, 0).reason


def test_bytes_and_text(load, machine):
    """Bytes and bytearrays are copied as they are, text as UTF-8 with a NUL behind it."""
    checksums = load("checksums")
    data = bytes(range(256)) * 40
    assert checksums.call("checksums_crc32", data, len(data), 0, returns="u32") == zlib.crc32(data)
    assert checksums.call(
        "checksums_adler32", bytearray(data), len(data), returns="u32"
    ) == zlib.adler32(data)
    text = "grüße"
    size = len(text.encode()) + 1
    expected = zlib.crc32(text.encode() + b"\0")
    assert checksums.call("checksums_crc32", text, size, 0, returns="u32") == expected
    assert machine.call(machine.kernel.address("strlen"), text) == size - 1


def test_text_ends_at_its_nul(machine):
    """An empty text is one NUL; empty bytes are a buffer all the same."""
    strlen = machine.kernel.address("strlen")
    assert machine.call(strlen, "") == 0
    assert machine.call(snippet(machine, "load"), b"", seconds=1) is not None


def test_out_is_zeroed_and_read_back(load, machine):
    """`Out` is zeroed for each call, and holds what the call left in it."""
    store, peek = snippet(machine, "store"), snippet(machine, "load")
    out = Out(8)
    machine.call(store, out, 0x0123_4567_89AB_CDEF)
    assert bytes(out) == bytes.fromhex("efcdab8967452301")
    assert machine.call(peek, out) == 0
    assert bytes(out) == bytes(8)
    nothing = Out(0)
    assert (machine.call(peek, nothing), bytes(nothing), len(nothing)) == (0, b"", 0)
    with pytest.raises(ValueError, match="-1 bytes"):
        Out(-1)


def test_a_large_buffer(load):
    """Buffers may be many pages long."""
    data = bytes(range(251)) * 1000
    checksums = load("checksums")
    found = checksums.call("checksums_adler32", data, len(data), returns="u32")
    assert found == zlib.adler32(data)


@pytest.mark.parametrize("value", [1.5, None, [1], {}, object()])
def test_other_types_are_refused(load, machine, value):
    """What is no int, bytes, text or Out is refused by its type's name, and nothing leaks."""
    before = machine.kernel.heap.live()
    tables = load("tables")
    found = refused(tables.call, "tables_dispatch", b"buffer", value)
    assert type(value).__name__ in found.reason
    assert machine.kernel.heap.live() == before


@pytest.fixture(scope="module")
def weigh(arch):
    """Return a machine, and the address of a function of ten arguments in it."""
    machine = Machine(arch)
    return machine, snippet(machine, "weigh")


@given(args=st.lists(st.integers(-(1 << 63), ADDRESS_MASK), min_size=10, max_size=10))
@settings(max_examples=25, deadline=None)
def test_arguments_beyond_the_registers(weigh, args):
    """Ten arguments arrive in order, those beyond the registers on the stack."""
    machine, function = weigh
    expected = sum(n * value for n, value in enumerate(args, 1))
    assert machine.call(function, *args) == expected & ADDRESS_MASK


def test_the_stack_is_aligned(machine):
    """However many arguments lie on the stack, it is aligned to 16 bytes at the call."""
    seen = []
    sp, link = machine.arch.runs.calling.stack_pointer, machine.arch.runs.calling.link
    machine.stub("aligned", lambda: seen.append(machine.cpu.read(sp)))
    for count in range(13):
        machine.call(machine.kernel.address("aligned"), *range(count))
    pushed = 0 if link is not None else 8
    assert {(value + pushed) % 16 for value in seen} == {0}


def test_a_callback_sees_arguments_on_the_stack(machine):
    """A Python callback gets as many arguments as it takes, those on the stack too."""
    seen = []
    machine.stub(
        "ten", lambda a, b, c, d, e, f, g, h, i, j: seen.append((a, b, c, d, e, f, g, h, i, j))
    )
    machine.call(snippet(machine, "forward"), machine.kernel.address("ten"), 100)
    assert seen == [tuple(range(100, 110))]


def test_buffers_go_with_the_call(load, machine):
    """Memory for arguments lasts for the call, whether it returns, faults or is refused."""
    checksums = load("checksums")
    before = machine.kernel.heap.live()
    checksums.call("checksums_crc32", b"abc", 3, 0)
    with pytest.raises(Fault):
        checksums.call("checksums_crc32", 0, 3, 0, b"abc")
    refused(machine.call, snippet(machine, "load"), b"abc", "text", Out(9), 1 << 70)
    assert machine.kernel.heap.live() == before


def test_a_function_may_free_its_argument(machine):
    """A buffer that the function frees is not freed again, and not complained about."""
    before = machine.kernel.heap.live()
    machine.call(machine.kernel.address("kfree"), b"taken")
    assert machine.kernel.heap.live() == before


# Results -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returns", "result"),
    [
        ("u64", 0xFFFF_FFFF_FFFF_FF80),
        ("s64", -128),
        ("long", -128),
        ("int", -128),
        ("unsigned int", 0xFFFF_FF80),
        ("u32", 0xFFFF_FF80),
        ("s16", -128),
        ("u16", 0xFF80),
        ("s8", -128),
        ("u8", 0x80),
        ("char", 0x80),
        ("bool", 1),
        ("void *", 0xFFFF_FFFF_FFFF_FF80),
        ("void", 0),
    ],
)
def test_results_by_their_type(load, returns, result):
    """The result register is read as the C type says; the kernel's plain char is unsigned."""
    assert load("tables").call("tables_dispatch", 1, 0, 128, returns=returns) == result


@pytest.mark.parametrize("returns", ["struct page", "nonsense", "", "int x"])
def test_a_result_type_that_is_none(load, machine, returns):
    """A type that no register holds is refused before anything runs."""
    tables = load("tables")
    before = machine.kernel.heap.live()
    refused(tables.call, "tables_dispatch", 0, b"buffer", returns=returns)
    assert machine.kernel.heap.live() == before


def test_a_type_that_is_zero_for_a_bool(load):
    """Only a zero register is false."""
    tables = load("tables")
    assert tables.call("tables_dispatch", 0, 0, 0, returns="bool") == 0
    assert tables.call("tables_dispatch", 0, 0, 2, returns="bool") == 1


def test_results_against_python(load):
    """What the functions of a library compute is what Python computes."""
    mathlib = load("mathlib")
    for a, b in ((0, 0), (12, 18), (1 << 63, 1 << 40), (ADDRESS_MASK, 3 * 5 * 17)):
        assert mathlib.call("mathlib_gcd", a, b) == math.gcd(a, b)
    assert mathlib.call("mathlib_powmod", 3, 10**18, 998244353) == pow(3, 10**18, 998244353)


# Names ---------------------------------------------------------------------------------------


def test_an_unknown_function(load):
    """A function that is not there is refused with the names that are like it."""
    found = refused(load("tables").call, "tables_crc46", b"", 0)
    assert found.function == "tables_crc46"
    assert "tables has no such symbol" in found.reason
    assert "tables_crc64" in found.hint
    assert refused(load("hello").call, "qqq").hint == ""


def test_a_function_of_init_is_gone(load):
    """A function in init memory cannot be called once init has run."""
    sealed = load("sealed")
    assert "freed after init" in refused(sealed.call, "sealed_init").reason
    assert "freed after init" in refused(sealed.call, "init_module").reason


def test_a_function_of_init_before_init(load):
    """Before init has run its functions are there, and their types are listed."""
    sealed = load("sealed", init=False)
    assert sealed.state is State.COMING
    assert sealed.call("sealed_init", returns="int") == 0
    assert {kind.is_init for kind in sealed.regions} == {True, False}


@pytest.mark.parametrize("name", ["sealed_value", "__this_module"])
def test_data_is_not_called(load, name):
    """A variable is refused as a function, although it has a symbol and an address."""
    sealed = load("sealed")
    assert "not a function" in refused(sealed.call, name).reason
    assert sealed.address_of(name) == sealed.symbols[name]


def test_per_cpu_variables(machine):
    """A per-cpu variable has an address and is no function; init is gone in such a module too."""
    module = machine.load(
        mini_module(machine.arch.machine, undefined=["strlen"], percpu=64), init=False
    )
    assert module.address_of("mini_percpu") == module.loaded.percpu + 8
    assert "not a function" in refused(module.call, "mini_percpu").reason
    machine.loader.settle(module.loaded)
    assert "freed after init" in refused(module.call, "init_module").reason


def test_an_unloaded_module(load):
    """Nothing of an unloaded module can be called or unloaded again, and it says so."""
    hello = load("hello")
    hello.unload()
    assert "unloaded" in refused(hello.call, "hello_greet", 1).reason
    with pytest.raises(LoadError, match="unloaded"):
        hello.unload()


def test_what_a_module_shows(load, machine):
    """Sections lie in regions of their type, symbols in sections, and the name is the module's."""
    module = load("sorting")
    regions = {kind: region.interval for kind, region in module.regions.items()}
    assert not any(kind.is_init for kind in regions)
    for section in module.sections.values():
        if section.type in regions and section.size:
            assert section.address in regions[section.type]
    assert any(module.symbols["sorting_sort"] in region for region in regions.values())
    assert (module.name, module.state) == ("sorting", State.LIVE)
    assert repr(module).startswith(f"<Module sorting ({machine.arch.name}, live): TEXT [0x")
    assert module.report.regions.keys() > regions.keys()  # init's are reported, and gone
