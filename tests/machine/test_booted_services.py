# SPDX-License-Identifier: GPL-2.0-or-later
"""What kernels do for their modules, done by the kernel itself: formats, threads, other contexts."""

from __future__ import annotations

import ipaddress
import uuid
from collections.abc import Iterator

import pytest

from kernels.errors import ErrnoError
from machine.arguments import Argument, Out
from machine.booted.machine import BootedMachine
from tests.support import booted

KERNELS = booted.some()
ANY_NODE = (1 << 64) - 1  # NUMA_NO_NODE


@pytest.fixture(params=KERNELS, ids=[name for name, _, _ in KERNELS])
def machine(request: pytest.FixtureRequest) -> Iterator[BootedMachine]:
    """Return each kernel that is at hand, booted, as it was at first."""
    _, folder, _ = request.param
    with booted.fresh(folder, booted.tree(folder)) as found:
        yield found


def call(machine: BootedMachine, name: str, *args: Argument, returns: str = "u64") -> int:
    """Call a function of the kernel."""
    return machine.call(machine.function(name), *args, returns=returns)


def formatted(machine: BootedMachine, text: str, *args: Argument) -> str:
    """Return what the kernel's snprintf() makes of a format."""
    out = Out(200)
    length = call(machine, "snprintf", out, len(out), text, *args, returns="int")
    return bytes(out)[:length].decode()


def test_formats_of_pointers(machine: BootedMachine) -> None:
    """%p and what follows it (Documentation/core-api/printk-formats.rst), beside Python's own."""
    data = bytes(range(0x10, 0x20))
    assert formatted(machine, "%pI4", data) == str(ipaddress.ip_address(data[:4]))
    sparse = ipaddress.ip_address("2001:db8::7:0:1")
    assert formatted(machine, "%pI6c", sparse.packed) == str(sparse)
    assert formatted(machine, "%pM", data) == data[:6].hex(":")
    assert formatted(machine, "%pMR", data) == data[:6][::-1].hex(":")
    assert formatted(machine, "%pUb", data) == str(uuid.UUID(bytes=data))
    assert formatted(machine, "%pUL", data) == str(uuid.UUID(bytes_le=data)).upper()
    assert formatted(machine, "%5ph|%4phN", data, data) == f"{data[:5].hex(' ')}|{data[:4].hex()}"
    assert formatted(machine, "%8pbl", b"\x95".ljust(8, b"\0")) == "0,2,4,7"
    assert formatted(machine, "%pe", (1 << 64) - 12) == "-ENOMEM"
    assert formatted(machine, "%6pE", b'a\n"\x01b!') == 'a\\n"\\001b!'
    place = machine.function("kfree")
    assert formatted(machine, "%ps %pS", place + 4, place + 4).startswith("kfree kfree+0x4/0x")
    (size,) = formatted(machine, "%px", 0x1234).split()
    assert size == f"{0x1234:016x}"


def test_an_address_is_hashed(machine: BootedMachine) -> None:
    """%p does not tell an address: the same for the same, something else for another."""
    place = machine.function("kfree")
    first, again, other = (formatted(machine, "%p", at) for at in (place, place, place + 64))
    assert first == again != other
    assert f"{place & 0xFFFF_FFFF:08x}" not in first


def test_work_is_done_elsewhere(machine: BootedMachine) -> None:
    """work_on_cpu() lets a worker call a function, and waits for what it returns."""
    text, key = machine.alloc(b"five!\0"), machine.alloc(8)
    names = ("work_on_cpu_key", "work_on_cpu")
    name = next(name for name in names if name in machine.kernel.symbols)
    with machine.trace("process_one_work") as seen:
        result = call(machine, name, 0, machine.function("strlen"), text, key, returns="s64")
    assert result == 5
    assert list(seen.walk())


def test_threads(machine: BootedMachine) -> None:
    """A kernel thread has a name and a number, and runs its function once it is woken."""
    state = machine.layouts.member("task_struct", "pid")

    def made(seconds: int) -> tuple[int, str]:
        task = call(
            machine,
            "kthread_create_on_node",
            machine.function("msleep"),
            seconds,
            ANY_NODE,
            "hand%d",
            7,
        )
        number = state.read(machine.read(task + state.offset, state.size))
        return task, f"/proc/{number}/comm"

    task, name = made(5)
    with machine.open(name, 0) as file:
        assert file.read_all() == b"hand7\n"
    assert call(machine, "kthread_stop", task, returns="int") == -4  # EINTR: was never woken
    machine.sleep(0.1)  # and is taken away
    with pytest.raises(ErrnoError, match="ENOENT"):
        machine.open(name, 0)
    task, name = made(20)
    with machine.trace("msleep") as seen:
        assert call(machine, "wake_up_process", task, returns="int") == 1
        machine.call(machine.function("schedule_timeout_uninterruptible"), 1)
        with machine.open(name, 0) as file:  # it sleeps
            assert file.read_all() == b"hand7\n"
        machine.call(machine.function("schedule_timeout_uninterruptible"), 50)
    assert 20 in [each.arguments[0] for _, each in seen.walk()]
    with pytest.raises(ErrnoError, match="ENOENT"):
        machine.open(name, 0)


def test_what_the_kernel_tests_when_it_boots(machine: BootedMachine) -> None:
    """Crypto that the kernel has tested itself says so, and nothing failed."""
    machine.sleep(1)  # some are tested in threads
    found = {record.name: record.fields["selftest"] for record in machine.algorithms()}
    assert found["sha256"] == "passed"
    assert set(found.values()) == {"passed"}
    assert not [
        line.text for line in machine.log if line.text.startswith("alg: ") and "fail" in line.text
    ]


def test_user_memory_that_is_not_there(machine: BootedMachine) -> None:
    """Reading and writing at an address that no memory is at is EFAULT, wherever it lies."""
    with machine.open("/proc/version", 0) as version, machine.device("zero") as zero:
        for bad in (0x10, 0x1234_5678_9000, 1 << 62, machine.function("kfree")):
            assert machine.syscall("read", version._fd, bad, 8) == -14
            assert machine.syscall("read", zero._fd, bad, 8) == -14
        assert machine.syscall("getpid") == 1
