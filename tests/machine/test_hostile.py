# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest code that means harm stops with a typed fault, in bounded time, and the host is fine."""

from __future__ import annotations

import time

import pytest

from allocator.types import MIB, PAGE_SIZE
from emulator.faults import Fault, FaultKind
from kernels.modelled.printk import LOG_LIMIT
from kernels.modelled.table import FUNCTIONS, Function
from machine.face import Machine
from samples import modules
from tests.machine.snippets import snippet

NOWHERE = 0xFFFF_FFFF_0000_0000  # between direct map, vmalloc, modules and image everywhere
WILD = (0, 1, 16, NOWHERE, (1 << 64) - 8, (1 << 64) - 1, 1 << 63, 0x1234_5678_9ABC_DEF1)


@pytest.fixture
def machine(arch):
    """Return a small machine that must work when the test is over."""
    found = Machine(arch, memory=64 * MIB)
    yield found
    found.check()
    assert found.calls.stack.depth == 0
    module = found.load(modules.path(arch.name, "checksums"))
    assert module.call("checksums_adler32", b"Wikipedia", 9) == 0x11E60398
    module.unload()


def call(machine, name, *args, **limits):
    """Call a kernel function by name."""
    return machine.call(machine.kernel.address(name), *args, **limits)


def test_a_loop_ends_at_either_limit(machine):
    """Code that spins stops after so many instructions, or so many seconds."""
    spin = snippet(machine, "spin")
    with pytest.raises(Fault) as caught:
        machine.call(spin, instructions=100_000)
    assert caught.value.kind is FaultKind.INSTRUCTION_LIMIT
    began = time.monotonic()
    with pytest.raises(Fault) as caught:
        machine.call(spin, seconds=0.2, instructions=None)
    assert caught.value.kind is FaultKind.TIME_LIMIT
    assert time.monotonic() - began < 10


def test_a_loop_of_kernel_calls_ends(machine):
    """Calling the kernel again and again does not escape the limits."""
    loop = snippet(machine, "loop")
    with pytest.raises(Fault) as caught:
        machine.call(loop, machine.kernel.address("ktime_get"), instructions=50_000)
    assert caught.value.kind is FaultKind.INSTRUCTION_LIMIT


def test_a_kernel_function_that_a_guest_makes_long_ends(machine):
    """Time passes in kernel functions, too: two thousand million entries are not unregistered."""
    began = time.monotonic()
    with pytest.raises(Fault) as caught:
        call(machine, "__rtnl_unregister_many", NOWHERE, 0x7FFF_FFFF, seconds=0.3)
    assert caught.value.kind is FaultKind.TIME_LIMIT
    assert time.monotonic() - began < 10


def test_filled_memory_is_an_error_of_the_guest(machine):
    """Kmalloc gives NULL when guest memory is full; the host's is not touched further."""
    taken = []
    while address := call(machine, "__kmalloc_noprof", MIB, 0):
        taken.append(address)
        assert len(taken) <= 64
    assert len(taken) > 30
    assert call(machine, "vmalloc_noprof", 1 << 40) == 0
    assert call(machine, "__kmalloc_noprof", 1 << 62, 0) == 0
    for address in taken:
        call(machine, "kfree", address)
    assert call(machine, "__kmalloc_noprof", MIB, 0) != 0


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("memset64", (NOWHERE, 1, 1 << 60)),
        ("memset", (NOWHERE, 1, 1 << 63)),
        ("memcpy", (NOWHERE, NOWHERE, (1 << 64) - 1)),
        ("sg_init_table", (NOWHERE, 0xFFFF_FFFF)),
        ("get_random_bytes", (NOWHERE, 1 << 50)),
        ("memweight", (NOWHERE, 1 << 50)),
        ("strlen", (NOWHERE,)),
        ("crypto_cipher_setkey", (NOWHERE, NOWHERE, 8)),
        ("kfree", (NOWHERE + 8,)),
        ("mutex_lock", (NOWHERE,)),
        ("complete", (8,)),
        ("__list_del_entry_valid_or_report", (NOWHERE,)),
        ("queue_work_on", (0, NOWHERE, NOWHERE)),
        ("mod_timer", (NOWHERE, (1 << 64) - 1)),
    ],
)
def test_forged_pointers_and_sizes(machine, name, args):
    """A kernel function that gets what cannot be faults for its caller, soon."""
    if name not in FUNCTIONS:
        pytest.skip(f"the kernel has no {name}")
    began = time.monotonic()
    with pytest.raises(Fault) as caught:
        call(machine, name, *args, seconds=5.0)
    assert caught.value.kind in (FaultKind.READ, FaultKind.WRITE, FaultKind.FETCH, FaultKind.PANIC)
    assert str(caught.value).isprintable()
    assert time.monotonic() - began < 10


def test_structures_full_of_wild_pointers(machine):
    """Whatever a guest writes into structures, functions that follow them fault or return."""
    at = machine.alloc(PAGE_SIZE)
    for wild in WILD:
        machine.write(at, wild.to_bytes(8, "little") * (PAGE_SIZE // 8))
        for name in (
            "mutex_unlock",
            "complete",
            "up",
            "wake_up_process",
            "__wake_up",
            "cancel_work_sync",
        ):
            if name in FUNCTIONS:
                args = (at, 1, 1, 0)[: len(FUNCTIONS[name].prototype.params)]
                try:
                    call(machine, name, *args, seconds=5.0, instructions=100_000)
                except Fault as fault:
                    assert str(fault).isprintable()  # noqa: PT017 -- returning is right as well


@pytest.mark.parametrize(
    "text",
    [
        b"%s%s%s%s%s%n\n",
        b"%2147483647d|%.2147483647s|%-2147483648x\n",
        b"%*pbl %*ph %pV %pISpfschl %pR %pE\n",
        b"%99999999999999999999999c\n",
        b"\x1b[2J\x1b[1;1H%c\n",
    ],
)
@pytest.mark.parametrize("wild", WILD)
def test_forged_formats(machine, text, wild):
    """Printk with a forged format and forged arguments logs a little, or faults."""
    lines = len(machine.log)
    try:
        call(machine, "_printk", text, *[wild] * 5, seconds=5.0)
    except Fault as fault:
        assert fault.kind is FaultKind.READ  # noqa: PT017 -- printing is right as well
    machine.kernel.flush_log()
    assert sum(len(line.text) for line in machine.log[lines:]) <= MIB


def test_a_guest_that_logs_without_end(machine):
    """A full log drops its oldest lines and says how many; what prints goes on."""
    kernel = machine.kernel
    for _ in range(LOG_LIMIT // 400_000):
        kernel.print(b"x" * 500_000 + b"\n")
    assert call(machine, "_printk", b"%60000c\n", returns="int") == 60_001
    assert machine.log[-1].text == "\0".rjust(60_000)
    dropped = int(machine.log[0].text.removesuffix(" lines dropped"))
    assert dropped + len(machine.log) - 1 == LOG_LIMIT // 400_000 + 1 == machine.log.total
    assert sum(len(line.text) for line in machine.log) <= LOG_LIMIT


def test_a_jump_to_every_part_of_the_kernel(machine):
    """Jumps into stubs, behind them, between them and into variables end in a fault."""
    jump = snippet(machine, "jump")
    stub = machine.kernel.address("kfree")
    variable = machine.kernel.address("jiffies")
    for target in (stub + 4, stub + 32, stub + 60, stub + (1 << 20), variable, variable + 4):
        with pytest.raises(Fault) as caught:
            machine.call(jump, target, instructions=1000)
        assert str(caught.value).isprintable()


def test_what_a_handler_trips_over_is_a_fault(machine, monkeypatch):
    """An error of Python in a kernel function is a panic of the guest, with its cause kept."""
    handler = lambda _k, size: [0][size]  # noqa: E731
    handler.__module__ = "kernels.modelled.api.strings"  # of the project's own
    tripping = Function("int tripping(u64 size)", handler)
    monkeypatch.setitem(FUNCTIONS, "tripping", tripping)
    with pytest.raises(Fault, match=r"tripping\(\) with arguments that make no sense") as caught:
        call(machine, "tripping", 7)
    assert caught.value.kind is FaultKind.PANIC
    assert isinstance(caught.value.__cause__, IndexError)


def test_what_a_callback_of_the_user_raises_stays_what_it_is(machine):
    """An error in a function that the user supplied is theirs to see."""
    machine.stub("own", lambda: {}["x"])
    with pytest.raises(KeyError):
        call(machine, "own")
    machine.stub("typed", lambda size: {}[size], prototype="int typed(u64 size)")
    with pytest.raises(KeyError):
        call(machine, "typed", 1)
