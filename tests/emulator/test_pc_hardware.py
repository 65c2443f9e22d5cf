# SPDX-License-Identifier: GPL-2.0-or-later
"""The hardware of a PC, as its data sheets have it, driven as Linux drives it."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest

from archs import acpi
from emulator.hardware.acpi import AcpiPm, Reset
from emulator.hardware.i8254 import I8254
from emulator.hardware.i8259 import I8259
from emulator.hardware.mc146818 import Mc146818
from emulator.hardware.ns16550 import Ns16550
from emulator.hardware.part import Wires

NS = 10**9
HERTZ = 1_193_182


def test_a_uart_is_a_16550a_to_linux() -> None:
    """A UART is a 16550A to Linux (autoconfig in drivers/tty/serial/8250/8250_port.c)."""
    wires = Wires()
    uart = Ns16550(wires)
    uart.write(1, 1, 0)
    assert uart.read(1, 1) & 0x0F == 0
    uart.write(1, 1, 0x0F)
    assert uart.read(1, 1) & 0x0F == 0x0F
    uart.write(4, 1, 0x10 | 0x0A)  # MCR: loop, OUT2, RTS
    assert uart.read(6, 1) & 0xF0 == 0x90
    uart.write(4, 1, 0)
    uart.write(2, 1, 1)
    assert uart.read(2, 1) >> 6 == 3
    uart.write(3, 1, 0x80)
    uart.write(0, 1, 0x34)
    uart.write(1, 1, 0x12)
    assert (uart.read(0, 1), uart.read(1, 1)) == (0x34, 0x12)
    uart.write(3, 1, 0x03)
    assert uart.read(5, 1) & 0x60 == 0x60
    assert not wires.console
    uart.write(0, 1, ord("x"))
    assert wires.console == b"x"
    uart.write(4, 1, 0x10)
    uart.write(0, 1, ord("y"))  # goes round
    assert wires.console == b"x"


def controller(*words: int) -> I8259:
    """Return an interrupt controller that was initialised."""
    found = I8259(Wires())
    command, *others = words or (0x11, 0x30, 0x04, 0x01)
    found.write(0, 1, command)
    for word in others:
        found.write(1, 1, word)
    return found


def test_an_interrupt_controller_keeps_what_it_is_told() -> None:
    """An interrupt controller keeps its mask (probe_8259A), and words of the start are none."""
    pic = controller()
    pic.write(1, 1, 0xFB)
    assert pic.read(1, 1) == 0xFB
    assert not pic.ready(0)
    assert pic.ready(2)


def test_an_interrupt_is_served_until_its_end() -> None:
    """An interrupt is served until its end; those of lower priority wait."""
    pic = controller()
    pic.write(1, 1, 0)
    assert pic.acknowledge(3) == 0x33
    assert [pic.ready(line) for line in (0, 3, 4)] == [True, False, False]
    pic.write(0, 1, 0x0B)  # OCW3: show what is served
    assert pic.read(0, 1) == 1 << 3
    assert pic.acknowledge(0) == 0x30
    pic.write(0, 1, 0x63)  # the end of 3
    assert pic.read(0, 1) == 1
    pic.write(0, 1, 0x20)  # the end of what is served
    assert pic.read(0, 1) == 0
    assert pic.ready(7)


@pytest.mark.parametrize("words", [(0x11, 0x20, 0x04, 0x03), (0x13, 0x20, 0x03)])
def test_an_interrupt_may_end_by_itself(words: tuple[int, ...]) -> None:
    """An interrupt may end by itself; a controller alone is told less."""
    pic = controller(*words)
    assert pic.acknowledge(0) == 0x20
    assert pic.ready(0)
    pic.write(1, 1, 0x81)
    assert pic.read(1, 1) == 0x81


def load(pit: I8254, counter: int, mode: int, count: int) -> None:
    """Set a counter, low byte first."""
    pit.write(3, 1, counter << 6 | 0x30 | mode << 1)
    pit.write(counter, 1, count & 0xFF)
    pit.write(counter, 1, count >> 8 & 0xFF)


def latched(pit: I8254, counter: int) -> int:
    """Return what a counter shows."""
    pit.write(3, 1, counter << 6)
    low = pit.read(counter, 1)
    return low | pit.read(counter, 1) << 8


def test_a_counter_counts_down_in_guest_time() -> None:
    """A counter counts down in guest time, and what is latched stays."""
    wires = Wires()
    pit = I8254(wires)
    load(pit, 0, 0, 50_000)
    wires.clock.advance(wires.clock.now + NS // 100)
    assert abs(latched(pit, 0) - (50_000 - HERTZ // 100)) <= 2
    pit.write(3, 1, 0)
    wires.clock.advance(wires.clock.now + NS // 100)
    low = pit.read(0, 1)
    assert abs((low | pit.read(0, 1) << 8) - (50_000 - HERTZ // 100)) <= 4
    assert pit.deadline() is not None


@pytest.mark.parametrize(("mode", "step"), [(2, 1), (3, 2)])
def test_a_counter_that_begins_again_does_so_in_step(mode: int, step: int) -> None:
    """A counter that begins again does so in step; interrupts that were missed are one."""
    wires = Wires()
    pit = I8254(wires)
    load(pit, 0, mode, 4773)
    start = wires.clock.now
    period = 4773 * NS / HERTZ
    for number in (1, 2, 3):
        due = pit.deadline()
        assert due is not None
        assert abs(due - start - number * period) <= 3
        wires.clock.advance(due)
        pit.take()
    wires.clock.advance(start + int(10.25 * period))
    pit.take()
    due = pit.deadline()
    assert due is not None
    assert abs(due - start - 11 * period) <= 12
    assert abs(latched(pit, 0) - (4773 - step * 4773 // 4)) <= 4


def test_a_counter_that_ends_does_so_once() -> None:
    """A counter that ends does so once; a new one is 65536 for 0."""
    wires = Wires()
    pit = I8254(wires)
    load(pit, 0, 4, 0)
    due = pit.deadline()
    assert due is not None
    assert abs(due - wires.clock.now - 65536 * NS / HERTZ) <= 1
    pit.take()
    assert pit.deadline() is None


def test_the_end_of_the_third_counter_shows_at_its_gate() -> None:
    """The end of the third counter shows at its gate, by which Linux measures other clocks."""
    wires = Wires()
    pit = I8254(wires)
    pit.write(0x21, 1, 1)
    load(pit, 2, 0, 59_659)  # 50 ms
    start = wires.clock.now
    assert not pit.read(0x21, 1) & 0x20
    wires.clock.advance(start + 49 * NS // 1000)
    assert pit.read(0x21, 1) == 1
    wires.clock.advance(start + 50 * NS // 1000)
    assert pit.read(0x21, 1) == 0x21


def test_bytes_of_a_counter_that_nobody_latched_alternate() -> None:
    """Bytes of a counter that nobody latched alternate (pit_expect_msb of arch/x86)."""
    wires = Wires()
    pit = I8254(wires)
    load(pit, 2, 0, 0xFFFF)
    seen = []
    for _ in range(3000):
        pit.read(2, 1)
        seen.append(pit.read(2, 1))
    assert seen[0] == 0xFF
    assert set(seen) == set(range(min(seen), 0x100))
    assert seen == sorted(seen, reverse=True)


def test_a_clock_shows_the_date_in_bcd() -> None:
    """A clock shows the date in BCD: that of guest time since 1970."""
    wires = Wires()
    clock = Mc146818(wires)
    wires.clock.advance(951_825_599 * NS)  # date -u -d @951825599: Tue Feb 29 11:59:59 2000

    def register(number: int) -> int:
        clock.write(0, 1, 0x80 | number)  # as NMI is masked
        return clock.read(1, 1)

    fields = [register(number) for number in (0, 2, 4, 6, 7, 8, 9, 0x32)]
    assert fields == [0x59, 0x59, 0x11, 3, 0x29, 0x02, 0x00, 0x20]
    assert register(0x0A) & 0x80 == 0
    assert register(0x0B) & 6 == 2  # 24 hours, BCD
    assert register(0x0D) == 0x80


def test_the_acpi_timer_runs() -> None:
    """ACPI's timer runs at its frequency and wraps after 24 bits; ACPI mode is on."""
    wires = Wires()
    pm = AcpiPm(wires)
    first = pm.read(8, 4)
    wires.clock.advance(wires.clock.now + NS)
    assert abs((pm.read(8, 4) - first) % (1 << 24) - 3_579_545) <= 4
    assert pm.read(4, 2) & 1
    pm.write(2, 2, 0x21)
    assert pm.read(2, 2) == 0x21


def test_sleeping_and_resetting_switch_off() -> None:
    """Sleeping and resetting switch off, and nothing less does."""
    wires, seen = Wires(), []
    wires.on_off = lambda: seen.append(1)
    AcpiPm(wires).write(4, 2, 0x1C01)
    Reset(wires).write(0, 1, 0x02)
    assert not seen
    AcpiPm(wires).write(4, 2, 0x3C01)
    Reset(wires).write(0, 1, 0x06)
    assert len(seen) == 2


def test_acpi_tables_add_up_and_lead_to_one_another() -> None:
    """ACPI tables add up to 0 and lead to one another (ACPI 6.5, 5.2)."""
    found = acpi.tables(0xE_0000)
    root = found[0xE_0000]
    assert root[:8] == b"RSD PTR "
    assert sum(root[:20]) % 256 == sum(root) % 256 == 0
    index = found[struct.unpack_from("<Q", root, 24)[0]]
    (fixed,) = struct.unpack_from("<Q", index, 36)
    control, code = struct.unpack_from("<II", found[fixed], 36)
    assert (index[:4], found[fixed][:4], found[control][:4], found[code][:4]) == (
        *(b"XSDT", b"FACP", b"FACS", b"DSDT"),
    )
    for table in (index, found[fixed], found[code]):
        assert len(table) == struct.unpack_from("<I", table, 4)[0]
        assert sum(table) % 256 == 0
    assert len(found[fixed]) == 244  # FADT of revision 3
    assert len(found[control]) == 64
    ends = [(at, at + len(data)) for at, data in sorted(found.items())]
    assert all(end <= start for (_, end), (start, _) in pairwise(ends))
