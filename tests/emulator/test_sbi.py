# SPDX-License-Identifier: GPL-2.0-or-later
"""Firmware calls, by the chapters of the RISC-V SBI specification 2.0."""

from __future__ import annotations

import pytest

from emulator.clock import NSEC_PER_SEC
from emulator.hardware.part import Wires
from emulator.hardware.sbi import Sbi
from emulator.ram import Ram

HERTZ = 10_000_000
RAM = 0x8000_0000
MASK = (1 << 64) - 1
NOT_SUPPORTED, INVALID_PARAM = MASK - 1, MASK - 2  # -2 and -3 (chapter 3)
BASE, TIME, DEBUG_CONSOLE, RESET = 0x10, 0x54494D45, 0x4442434E, 0x53525354
IPI, RFENCE, HSM = 0x735049, 0x52464E43, 0x48534D


@pytest.fixture
def firmware() -> Sbi:
    """Return firmware of a computer with 64 KiB of memory."""
    return Sbi(Wires(), Ram(RAM, 0x1_0000), HERTZ)


def test_it_says_what_it_is(firmware: Sbi) -> None:
    """It says what it is (chapter 4)."""
    assert firmware.call(BASE, 0, (0, 0, 0)) == (0, 2 << 24)
    for function in range(7):
        assert firmware.call(BASE, function, (0, 0, 0))[0] == 0
    assert firmware.call(BASE, 7, (0, 0, 0)) == (NOT_SUPPORTED, 0)


@pytest.mark.parametrize("extension", [BASE, TIME, IPI, DEBUG_CONSOLE, RESET, 0, 1, 2, 8])
def test_what_is_there_is_found(firmware: Sbi, extension: int) -> None:
    """What is there is found."""
    assert firmware.call(BASE, 3, (extension, 0, 0)) == (0, 1)


@pytest.mark.parametrize("extension", [RFENCE, HSM, 3, 7, 0x504D55, MASK])
def test_what_is_not_there_is_not_found_and_says_so(firmware: Sbi, extension: int) -> None:
    """What is not there is not found, and says so when it is called."""
    assert firmware.call(BASE, 3, (extension, 0, 0)) == (0, 0)
    assert firmware.call(extension, 0, (0, 0, 0))[0] == NOT_SUPPORTED


@pytest.mark.parametrize(
    ("given", "error", "sent"),
    [
        ((1, 0, 0), 0, True),
        ((0, 0, 0), 0, False),
        ((0, MASK, 0), 0, True),  # all
        ((2, 0, 0), INVALID_PARAM, False),
        ((1, 1, 0), INVALID_PARAM, False),
    ],
)
def test_the_hart_interrupts_itself(
    firmware: Sbi, given: tuple[int, int, int], error: int, sent: bool
) -> None:
    """By chapter 7; nobody else is there."""
    assert firmware.call(IPI, 0, given) == (error, 0)
    assert firmware.sent is sent
    assert firmware.call(IPI, 1, given)[0] == NOT_SUPPORTED


def test_a_console_prints_what_is_in_memory(firmware: Sbi) -> None:
    """A console prints what is in memory (chapter 12): as much as it says."""
    firmware.ram.write(RAM + 0x100, b"hello\n")
    assert firmware.call(DEBUG_CONSOLE, 0, (6, RAM + 0x100, 0)) == (0, 6)
    assert firmware.call(DEBUG_CONSOLE, 2, (0x121, 0, 0)) == (0, 0)  # one byte: its lowest
    assert bytes(firmware.wires.console) == b"hello\n!"
    assert firmware.call(DEBUG_CONSOLE, 1, (6, RAM, 0)) == (0, 0)  # nobody types


@pytest.mark.parametrize(
    "given", [(6, 0, 0), (6, RAM + 0xFFFC, 0), (6, RAM, 1), (MASK, RAM, 0), (1, MASK, MASK)]
)
@pytest.mark.parametrize("function", [0, 1])
def test_a_console_refuses_what_is_no_memory(
    firmware: Sbi, function: int, given: tuple[int, int, int]
) -> None:
    """A console refuses what is no memory."""
    assert firmware.call(DEBUG_CONSOLE, function, given) == (INVALID_PARAM, 0)
    assert not firmware.wires.console


def test_legacy_calls_return_one_value(firmware: Sbi) -> None:
    """Legacy calls return one value (chapter 5)."""
    assert firmware.call(1, 0, (ord("x"), 0, 0)) == (0,)
    assert firmware.call(2, 0, (0, 0, 0)) == (MASK,)
    assert bytes(firmware.wires.console) == b"x"


@pytest.mark.parametrize("extension", [TIME, 0])
def test_a_timer_is_set_and_not_pending_any_more(firmware: Sbi, extension: int) -> None:
    """A timer is set, and not pending any more (chapter 6)."""
    firmware.wires.pending.append(5)
    firmware.call(extension, 0, (3 * HERTZ, 0, 0))
    assert firmware.timer == 3 * NSEC_PER_SEC
    assert not firmware.wires.pending
    firmware.call(extension, 0, (MASK, 0, 0))
    assert firmware.timer is None


@pytest.mark.parametrize(
    ("extension", "given", "found", "off"),
    [
        pytest.param(RESET, (0, 0, 0), None, True, id="shutdown"),
        pytest.param(RESET, (1, 1, 0), None, True, id="cold reboot"),
        pytest.param(RESET, (3, 0, 0), INVALID_PARAM, False, id="reserved type"),
        pytest.param(RESET, (0, 2, 0), INVALID_PARAM, False, id="reserved reason"),
        pytest.param(RESET, (0xF000_0000, 0, 0), NOT_SUPPORTED, False, id="vendor's type"),
        pytest.param(8, (0, 0, 0), None, True, id="legacy"),
    ],
)
def test_it_is_switched_off(
    firmware: Sbi, extension: int, given: tuple[int, int, int], found: int | None, off: bool
) -> None:
    """It is switched off (chapter 10)."""
    ended: list[bool] = []
    firmware.wires.on_off = lambda: ended.append(True)
    answer = firmware.call(extension, 0, given)
    assert bool(ended) is off
    assert found is None or answer == (found, 0)
