# SPDX-License-Identifier: GPL-2.0-or-later
"""No guest ends the host: whatever it does ends in a Fault, in time, and one can go back."""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

import archs
from archs import Arch
from emulator.boards import board_of
from emulator.faults import BadCall, Fault, FaultKind
from emulator.hardware.sbi import Sbi
from loader.errors import LoadError
from machine.booted.machine import BootedMachine
from tests.archs.facts import facts
from tests.support import booted

KERNELS = booted.one_of_each()
BOOTING = [arch for arch in archs.archs() if arch.boot is not None]
LIMITS = {FaultKind.TIME_LIMIT, FaultKind.INSTRUCTION_LIMIT}


@pytest.fixture(params=KERNELS, ids=[name for name, _, _ in KERNELS])
def machine(request: pytest.FixtureRequest) -> Iterator[BootedMachine]:
    """Return a kernel for each architecture; afterwards it must compute as ever."""
    _, folder, _ = request.param
    found = booted.machine(folder, folder if (folder / "lib").is_dir() else None)
    with found.fork():
        yield found
    found.seconds, found.instructions = 60, None
    assert crc(found) == zlib.crc32(b"abc")


def crc(machine: BootedMachine, **limits: int | None) -> int:
    """Return what the kernel computes."""
    found = machine.call(machine.function("crc32_le"), 0xFFFF_FFFF, b"abc", 3, **limits)  # type: ignore[arg-type] # limits
    return found & 0xFFFF_FFFF ^ 0xFFFF_FFFF


def spin(machine: BootedMachine, name: str) -> int:
    """Let a function of the kernel go on for ever, which may have been executed before."""
    address = machine.function(name)
    machine.write(address, facts(machine.arch).link.spin)
    return address


def test_calls_have_limits_of_guest_work(machine: BootedMachine) -> None:
    """What fits is as without one; what does not is a Fault that says how to go on."""
    assert crc(machine, instructions=1_000_000) == zlib.crc32(b"abc")
    with machine.fork():
        with pytest.raises(Fault, match="--instructions N") as caught:
            crc(machine, instructions=5)
        assert caught.value.kind is FaultKind.INSTRUCTION_LIMIT
        with pytest.raises(Fault, match="restore a snapshot"):
            crc(machine)
    with machine.fork(), machine.budget(instructions=60_000):
        with pytest.raises(Fault) as caught:
            [crc(machine) for _ in range(1000)]  # all of them take from one budget
        assert caught.value.kind is FaultKind.INSTRUCTION_LIMIT
    machine.instructions = 1_000_000
    assert crc(machine) == zlib.crc32(b"abc")


def test_the_count_is_of_what_is_executed(machine: BootedMachine) -> None:
    """A limit is met exactly: one less is too few, and twice the work is twice the number."""

    def least(size: int) -> int:
        data, kept = machine.alloc(size), machine.snapshot()
        function, low, high = machine.function("crc32_le"), 1, 1 << 16
        while low < high:
            middle = (low + high) // 2
            try:
                machine.call(function, 0, data, size, instructions=middle)
                high = middle
            except Fault:
                low = middle + 1
            machine.restore(kept)
        return low

    if machine.arch.name != KERNELS[0][2].name:
        pytest.skip("once is enough")
    first, second, third = least(256), least(512), least(768)
    assert second - first == third - second > 256


@pytest.mark.parametrize("limits", [{"seconds": 0.3}, {"instructions": 200_000}], ids=str)
def test_loops_end(machine: BootedMachine, limits: dict[str, float]) -> None:
    """In a call, in an interrupt's handler, in what loads modules, with interrupts off."""
    kept = machine.snapshot()
    start = time.monotonic()
    for name in ("crc32_le", "update_process_times", "do_one_initcall"):
        address = spin(machine, name)
        (limit, most), *_ = limits.items()
        setattr(machine, limit, most)
        work: Any = partial(machine.sleep, 3600)
        if name == "crc32_le":
            work = partial(machine.call, address)
        elif name == "do_one_initcall" and machine.tree is not None:
            # One with an init: an algorithm.
            having = [n for n, f in machine.tree.files.items() if "kernel/crypto/" in str(f)]
            work = partial(machine.load, min(having))
        with pytest.raises(Fault) as caught:
            work()
        assert caught.value.kind in LIMITS
        machine.restore(kept)
        machine.seconds, machine.instructions = 60, None
    assert time.monotonic() - start < 60


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("panic_smp_self_stop", ()),
        ("machine_halt", ()),
        ("kernel_restart", (0,)),
        ("kernel_power_off", ()),
        ("emergency_restart", ()),
        ("panic", ("enough",)),
        ("stop_this_cpu", (0,)),
        ("local_cpu_stop", ()),
        ("do_exit", (0,)),
    ],
)
def test_what_ends_everything_ends_the_call(
    machine: BootedMachine, name: str, args: tuple[int | str, ...]
) -> None:
    """Halting with interrupts off, switching off, restarting, panicking, exiting."""
    if name not in machine.kernel.symbols:
        pytest.skip(f"this kernel has no {name}")
    machine.seconds = 2
    with pytest.raises(Fault):
        machine.call(machine.function(name), *args)
    with suppress(Fault):  # whatever there is to be had from it now
        machine.sleep(0.01)


def test_memory_that_is_full_ends_nothing(machine: BootedMachine) -> None:
    """All of the guest's memory is less than a host has."""
    machine.seconds = 10
    with pytest.raises((BadCall, Fault)):
        [machine.alloc(32 << 20) for _ in range(100)]
    with suppress(BadCall, Fault), pytest.raises(BadCall):
        machine.alloc(1 << 50)


def test_no_module_may_do_what_it_is_not_given_time_for(machine: BootedMachine) -> None:
    """A load has one budget, with all that it needs."""
    if machine.tree is None:
        pytest.skip("this kernel is here without modules")
    machine.instructions = 1000
    with pytest.raises((Fault, LoadError)) as caught:
        machine.load(max(machine.tree.files))
    assert isinstance(caught.value, Fault)
    assert caught.value.kind is FaultKind.INSTRUCTION_LIMIT


@pytest.mark.parametrize("arch", BOOTING)
def test_hardware_takes_whatever_is_written(arch: Arch) -> None:
    """Nothing that a guest writes to a part or reads from it is an error of the host."""
    board = board_of(arch, 4 << 20)
    chosen = random.Random(3)
    values = (0, 1, 0xFF, 0x1234, 0xFFFF_FFFF, (1 << 64) - 1)
    for _ in range(20_000):
        if board.devices:
            number = chosen.randrange(len(board.devices))
            device, part = board.devices[number], board.boot.parts[number]
            at, size = chosen.randrange(part.size), chosen.choice((1, 2, 4, 8))
            value = chosen.choice((*values, chosen.getrandbits(64))) & (1 << 8 * size) - 1
            device.write(at, size, value)
            device.read(at, size)
        else:
            sbi = Sbi(board.wires, board.ram, 10_000_000)
            given = [chosen.choice((*values, chosen.getrandbits(64))) for _ in range(6)]
            extension = chosen.choice((*range(16), 0x10, 0x5449_4D45, 0x4442_434E, 0x5352_5354))
            sbi.call(extension, chosen.choice(values), given)
        board.deadline()
        board.clock.now += chosen.randrange(10_000_000)
    assert len(board.wires.console) < 200_000
