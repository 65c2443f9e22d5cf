# SPDX-License-Identifier: GPL-2.0-or-later
"""Kprobes and ftrace of booted kernels: what they change in the text, and what they see.

What is expected comes from the kernel itself: its trace buffer and its text before. Breakpoints
and slots are as the architectures' manuals encode them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emulator.faults import BadCall
from kernels.tracing import PatchRefused
from machine.arguments import Out
from machine.booted.machine import BootedMachine
from tests.support import booted

KERNELS = booted.one_of_each()
FUNCTION = "do_sys_openat2"


@pytest.fixture(params=KERNELS, ids=[name for name, _, _ in KERNELS])
def machine(request: pytest.FixtureRequest) -> Iterator[BootedMachine]:
    """Return a kernel for each architecture, booted, as it was at first."""
    _, folder, _ = request.param
    found = booted.machine(folder, folder if (folder / "lib").is_dir() else None)
    with found.fork():
        yield found


def inside(machine: BootedMachine, name: str) -> str:
    """Return a place behind the first instructions of a function, which ftrace may have."""
    assert machine.arch.patching is not None
    decode = machine.arch.patching.kprobes.decode
    start = machine.function(name)
    at = start
    while at < start + 9:
        at += decode(machine.read(at, 16), at).size
    return f"{name}+{at - start}"


def used(machine: BootedMachine, times: int) -> None:
    """Let process 1 open a file so many times."""
    for _ in range(times):
        machine.open("/proc/uptime").close()


def test_a_kprobe_changes_text_and_copies_what_was_there(machine: BootedMachine) -> None:
    """Site, slot and buffer; all is as before when it has gone."""
    place = inside(machine, FUNCTION)
    machine.open("/proc/uptime").close()  # /proc is there
    address = machine.interposing.functions.spot("probe", place).address
    before, shown = machine.read(address, 16), machine.disassemble(address)
    with machine.kernel_probe(place) as probe:
        site, slot = probe.site, probe.slot
        assert site.address == probe.address == address
        assert site.before is not None
        assert before.startswith(site.before)
        assert machine.read(address, len(site.data)) == site.data != site.before
        assert site.lines[0].split()[0] in ("int3", "brk", "ebreak", "c.ebreak")
        if machine.kernel.standing.types is not None:
            assert slot is not None
            assert slot.lines[0] == shown  # it is independent of where it stands
            assert slot.data.startswith(before[: len(site.before)])
            assert machine.read(slot.address, len(slot.data)) == slot.data
        seen = probe.count
        used(machine, 3)
        assert probe.count == seen + 3 + 2  # the files that are opened to read the buffer, too
        assert f"({FUNCTION}+0x" in probe.lines[0]
    assert machine.read(address, 16) == before
    assert probe.slot is None
    probe.stop()


def test_ftrace_calls_from_where_nothing_was(machine: BootedMachine) -> None:
    """The entries of the functions that were named, and no others; one trace at a time."""
    start = machine.function(FUNCTION)
    around = machine.read(start - 16, 64)
    with machine.kernel_trace(FUNCTION, "vfs_read") as trace:
        assert set(trace.sites) == {FUNCTION, "vfs_read"}
        for name, site in trace.sites.items():
            assert site.data != site.before
            assert abs(site.address - machine.function(name)) <= 16
            calls = {line.split()[0] for line in site.lines}
            assert calls & {"call", "bl", "jalr", "c.jalr"}, site
        seen = len(trace.lines)
        used(machine, 2)
        assert len(trace.lines) > seen + 1
        assert all(f" {FUNCTION} <-" in line or " vfs_read <-" in line for line in trace.lines)
        with pytest.raises(PatchRefused, match="ftrace traces already"):
            machine.kernel_trace("vfs_write")
        if trace.trampoline is not None:
            assert f"{trace.trampoline.address:#x}" in trace.sites[FUNCTION].lines[0]
    assert machine.read(start - 16, 64) == around


def test_what_the_kernel_refuses_is_told_with_its_words(machine: BootedMachine) -> None:
    """Places that it does not allow, and names that it does not have."""
    with pytest.raises(BadCall):
        machine.kernel_probe("of_nobody_at_all")
    with pytest.raises(PatchRefused, match="the kernel refuses it: -"):
        machine.kernel_probe("notify_die" if "notify_die" in machine.kernel.symbols else "die")
    with pytest.raises(BadCall, match="more than one"):
        machine.kernel_probe(FUNCTION, fetch="a=$stack0\n-:x")
    with pytest.raises(PatchRefused):
        machine.kernel_trace("of_nobody_*")


def test_closed_files_are_let_go_at_once(machine: BootedMachine) -> None:
    """A pipe whose writer was closed has ended; a process that never leaves would keep it."""
    pair = Out(8)
    assert machine.syscall("pipe2", pair, 0o4000) == 0  # O_NONBLOCK
    reader, writer = (int.from_bytes(bytes(pair)[at : at + 4], "little") for at in (0, 4))
    assert machine.syscall("read", reader, Out(1), 1) == -11  # EAGAIN: it is open
    assert machine.syscall("close", writer) == 0
    assert machine.syscall("read", reader, Out(1), 1) == 0
