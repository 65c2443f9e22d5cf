# SPDX-License-Identifier: GPL-2.0-or-later
"""The hardware of booted kernels, as its manuals have it."""

from __future__ import annotations

from itertools import pairwise

import pytest

from emulator.clock import Clock, nanoseconds
from emulator.hardware.gicv2 import CpuInterface, Distributor
from emulator.hardware.part import Wires
from emulator.hardware.pl011 import Pl011

NS = 10**9


def test_a_uart_prints_and_is_always_ready() -> None:
    """A UART prints and is always ready."""
    wires, heard = Wires(), []
    wires.on_console = heard.append
    uart = Pl011(wires)
    for letter in b"ok\n":
        assert not uart.read(0x18, 4) & 0x20  # UARTFR.TXFF
        uart.write(0, 4, letter)
    uart.write(0x30, 4, 0x301)  # UARTCR
    assert bytes(wires.console) == b"".join(heard) == b"ok\n"


def test_an_interrupt_is_acknowledged_once() -> None:
    """An interrupt is acknowledged once."""
    wires = Wires()
    interface = CpuInterface(wires)
    assert interface.read(0x0C, 4) == 1023  # GICC_IAR: spurious
    wires.pending.append(27)
    assert interface.read(0x0C, 4) == 27
    assert interface.read(0x0C, 4) == 1023


@pytest.mark.parametrize(
    ("value", "pending"),
    [
        (2 << 24 | 5, [5]),  # to who sends it
        (1 << 16 | 3, [3]),  # to CPU 0
        (2 << 16 | 3, []),  # to CPU 1
        (1 << 24 | 1 << 16 | 3, []),  # to all others
    ],
)
def test_a_cpu_interrupts_itself(value: int, pending: list[int]) -> None:
    """GICD_SGIR (GICv2, 4.3.15): once, however often it is sent before it is acknowledged."""
    wires = Wires()
    distributor, interface = Distributor(wires), CpuInterface(wires)
    distributor.write(0xF00, 4, value)
    distributor.write(0xF00, 4, value)
    assert [interface.read(0x0C, 4), interface.read(0x0C, 4)] == [*pending, 1023, 1023][:2]


def test_interrupts_are_enabled_bit_by_bit() -> None:
    """Interrupts are enabled bit by bit."""
    distributor = Distributor(Wires())
    distributor.write(0x100, 4, 1 << 27 | 1 << 30)
    distributor.write(0x180, 4, 1 << 30)
    assert distributor.read(0x100, 4) == 1 << 27
    state = distributor.state()
    other = Distributor(Wires())
    other.set_state(state)
    assert other.read(0x180, 4) == 1 << 27


def test_looking_takes_a_little_time_that_differs() -> None:
    """Looking takes a little time that differs."""
    clock = Clock()
    looks = [clock.look() for _ in range(1000)]
    steps = {b - a for a, b in pairwise(looks)}
    assert min(steps) >= 256 > max(steps) - 256
    assert len(steps) > 100  # what gathers entropy insists on that
    again = Clock()
    assert [again.look() for _ in range(1000)] == looks


def test_ticks_and_nanoseconds_are_each_others_inverse() -> None:
    """Ticks and nanoseconds are each other's inverse."""
    for frequency in (1_193_182, 10_000_000, 62_500_000, NS):
        for ticks in (0, 1, 12_345, 10**12 + 7):
            moment = nanoseconds(ticks, frequency)
            assert moment * frequency // NS >= ticks
            assert ticks == 0 or (moment - 1) * frequency // NS < ticks


def test_waiting_never_goes_back() -> None:
    """Waiting never goes back."""
    clock = Clock(now=5 * NS)
    clock.advance(4 * NS)
    assert clock.now == 5 * NS
    clock.advance(6 * NS)
    assert clock.now == 6 * NS
