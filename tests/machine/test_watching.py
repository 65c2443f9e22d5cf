# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that is watched: held to what algorithms must touch, and to what memory holds afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from archs import Arch
from emulator.faults import BadCall
from machine.booted.machine import BootedMachine
from machine.face import Machine
from machine.watching import Touch, Watch
from samples.modules import root
from tests.support import booted

KERNELS = booted.some()
DATA = bytes(range(7, 250, 3)) * 5


@pytest.fixture
def modelled(arch: Arch) -> Machine:
    """Return a machine with our own modules."""
    return Machine(arch, root=root(arch.name))


@pytest.fixture(params=KERNELS, ids=[name for name, _, _ in KERNELS])
def real(request: pytest.FixtureRequest) -> Iterator[BootedMachine]:
    """Return a booted kernel."""
    _, folder, _ = request.param
    with booted.fresh(Path(folder), booted.tree(Path(folder))) as machine:
        yield machine


def table_of_crc16() -> list[int]:
    """Return the table of CRC-16/XMODEM."""
    table = []
    for high in range(256):
        crc = high << 8
        for _ in range(8):
            crc = (crc << 1 ^ (0x1021 if crc & 0x8000 else 0)) & 0xFFFF
        table.append(crc)
    return table


def replayed(watch: Watch, before: bytes) -> bytes:
    """Return what stands in a watched range after the stores that were told of."""
    now = bytearray(before)
    for hit in watch.hits:
        at = max(hit.address - watch.address, 0)
        assert now[at : at + len(hit.old)] == hit.old, hit
        now[at : at + len(hit.new)] = hit.new
    return bytes(now)


def test_reads_are_those_that_the_algorithm_makes(modelled: Machine) -> None:
    """Every look at three bytes of a table, each once, in order, with the value that is there."""
    module = modelled.load("checksums")
    table, crc, expected = table_of_crc16(), 0, []
    for byte in DATA:
        index = crc >> 8 ^ byte
        crc = table[index] ^ crc << 8 & 0xFFFF
        if index in (10, 11):  # bytes 20 to 23 of the table; 20, 21, 22 are watched
            expected.append((index, table[index]))
    with modelled.watch("checksums:crc16_table+20", 3, "r") as watch:
        assert module.call("checksums_crc16", DATA, len(DATA), 0, returns="u16") == crc
    start = module.address_of("crc16_table")
    assert len(expected) > 2
    assert {index for index, _ in expected} == {10, 11}
    assert [((hit.address - start) // 2, hit.size) for hit in watch.hits] == [
        (index, 2) for index, _ in expected
    ]
    for hit, (index, value) in zip(watch.hits, expected, strict=True):
        seen = value if index == 10 else value & 0xFF  # the part that lies in the range
        assert (hit.kind, hit.old_value, hit.new_value) == ("read", seen, seen)
        assert hit.where.startswith("checksums_crc16+")
        assert hit.pc is not None
        assert modelled.disassemble(hit.pc)
    assert watch.count == len(expected)
    module.call("checksums_crc16", DATA, len(DATA), 0)
    assert watch.count == len(expected)  # nobody watches any more


def test_stores_replayed_give_what_is_there(modelled: Machine) -> None:
    """A sort in place: the stores that were told of make the sorted bytes of the unsorted ones."""
    module = modelled.load("sorting")
    values = [(each * 37) % 101 for each in range(40)]
    order = modelled.arch.link.dialect.order
    at = modelled.alloc(b"".join(value.to_bytes(4, order) for value in values))
    with modelled.watch(at + 6, 17, "w") as watch:
        before = modelled.read(at + 6, 17)
        module.call("sorting_sort", at, len(values))
        after = modelled.read(at + 6, 17)
        modelled.write(at + 10, b"from outside, told to nobody")
    expected = b"".join(value.to_bytes(4, order) for value in sorted(values))
    assert after == expected[6:23]
    assert replayed(watch, before) == after
    assert all("swap_counted" in hit.where or "sift_down" in hit.where for hit in watch.hits)


def test_kernel_functions_in_python_are_told_by_name(modelled: Machine) -> None:
    """The module's log has its text copied by the kernel's memcpy(), called by its own function."""
    module = modelled.load("logbook")
    at = modelled.alloc(b"hello\0")
    with modelled.watch(at + 1, 4, "r") as watch:
        module.call("logbook_add", at)
    told = [hit for hit in watch.hits if "() for " in hit.where]
    assert told
    assert all(hit.where.split("() for ")[1].startswith("logbook_add+") for hit in told)
    assert (told[-1].where.partition("()")[0], told[-1].new) == ("memcpy", b"ello")


def test_another_address_of_the_same_memory(modelled: Machine) -> None:
    """What the module reads by its own address is seen through the direct map's."""
    module = modelled.load("checksums")
    table = module.address_of("crc16_table")
    frame = modelled.ground.frame(table + 2)
    assert frame is not None
    alias = modelled.memory.direct_map.start + frame  # type: ignore[attr-defined]  # the modelled one's
    assert alias != table + 2
    with modelled.watch(alias, 2) as watch:
        module.call("checksums_crc16", b"\x01", 1, 0)
        module.call("checksums_crc16", b"\x02", 1, 0)
    assert [(hit.address, hit.new_value) for hit in watch.hits] == [(alias, 0x1021)]


def test_a_callback_looks_and_ends_it(modelled: Machine) -> None:
    """It sees memory as it is before; what it raises comes out of the call; the machine goes on."""
    module = modelled.load("checksums")

    class Enough(Exception):
        pass

    def look(hit: Touch) -> None:
        assert modelled.read(hit.address, hit.size) == hit.old
        raise Enough

    with modelled.watch("checksums:crc16_table", 512, "r", look) as watch:
        with pytest.raises(Enough):
            module.call("checksums_crc16", DATA, len(DATA), 0)
        assert watch.count == 1
    assert (
        module.call("checksums_crc16", b"123456789", 9, 0, returns="u16") == 0x31C3
    )  # CRC-16/XMODEM's


def test_what_cannot_be_watched(modelled: Machine) -> None:
    """Each refusal says what is wrong."""
    modelled.load("checksums")
    for args, words in (
        (("checksums:nothing", 1), "nothing"),
        (("nobody:nothing", 1), "no such module"),
        (("nothing", 1), "neither the kernel nor a module"),
        (("checksums:crc16_table+x", 1), "no offset"),
        (("checksums:crc16_table",), "how many bytes"),
        (("checksums:crc16_table", 0), "0 bytes"),
        (("checksums:crc16_table", 1, "x"), "expected r, w or rw"),
        ((0x123, 1), "nothing is mapped"),
    ):
        with pytest.raises(BadCall, match=words):
            modelled.watch(*args)  # type: ignore[arg-type]  # that is what it refuses


def test_a_kernel_clears_and_copies(real: BootedMachine) -> None:
    """All that memset() and memcpy() store, in blocks and over the end of a page; from outside: nothing."""
    at, text = real.alloc(0x2000), bytes(range(1, 201))
    real.write(at, b"A" * 0x2000)
    memset, memcpy = real.function("memset"), real.function("memcpy")
    with real.watch(at + 30, 0x1003) as watch:
        before = real.read(at + 30, 0x1003)
        real.call(memset, at, 0, 0x1000)
        source = real.alloc(text)
        real.call(memcpy, at + 0x1000 - 67, source, 200)
        after = real.read(at + 30, 0x1003)
    assert after == (bytes(0x1000 - 67) + text)[30 : 0x1000 + 33]
    assert replayed(watch, before) == after
    assert {hit.kind for hit in watch.hits} == {"write"}  # each by an instruction that was seen
    named = {hit.where.partition("+")[0].replace("__pi_", "").strip("_") for hit in watch.hits}
    assert {name.removesuffix("_orig") for name in named} == {"memset", "memcpy"}


def test_going_back_is_no_access(real: BootedMachine) -> None:
    """What `restore` puts back nobody stored; afterwards the watch goes on."""
    at = real.alloc(b"A" * 64)
    memset = real.function("memset")
    snapshot = real.snapshot()
    with real.watch(at + 3, 1, "w") as watch:
        real.call(memset, at, 0x42, 64)
        real.restore(snapshot)
        real.call(memset, at, 0x43, 64)
    assert [hit.new for hit in watch.hits] == [b"B", b"C"]
    assert [hit.old for hit in watch.hits] == [b"A", b"A"]


def test_a_member_is_watched(real: BootedMachine) -> None:
    """A member by its name, whatever its offset: the kernel's parser of options sets it."""
    table = real.new("struct match_token[2]")
    table[0] = {"token": 1, "pattern": "size=%u"}
    found = real.new("substring_t[3]")
    text = real.alloc(b"size=4711\0")
    with real.watch(found[0].at_("to"), kinds="w") as watch:
        assert real.functions.match_token(text, table, found) == 1
    assert [hit.new_value for hit in watch.hits] == [text + 9]
    assert watch.hits[0].where.partition("+")[0] in ("simple_strtoull", "simple_strntoull")


def test_in_the_middle_of_code_nobody_would_tell(real: BootedMachine) -> None:
    """A watch may begin in a handler for which the emulator stops, and is refused in one inside."""
    at = real.alloc(64)
    seen: list[object] = []

    def first(_hit: Touch) -> None:
        if not seen:
            seen.append(real.watch(at + 8, 8))

    with real.watch(at, 8, callback=first):
        real.call(real.function("memset"), at, 1, 64)
    assert isinstance(seen[0], Watch)  # all code tells already
    assert seen[0].count >= 1
    seen[0].stop()
