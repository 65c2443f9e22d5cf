# SPDX-License-Identifier: GPL-2.0-or-later
"""Clocks and random numbers of the CPU follow guest time and a seed, and nothing of the host.

The oracles are the manuals' rules (a counter never runs backwards, its frequency is what the
frequency register or variable says) and a second process, which must see the same.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from machine.face import Machine
from tests.archs.facts import facts, needs
from tests.machine.snippets import put


def values(name, *, seed=0):
    """Return what every clock and generator of an architecture returns, read twice in turn."""
    machine = Machine(name, seed=seed)
    known = facts(name).run
    functions = known.clocks | {each: code for each, (code, _) in known.random.items()}
    placed = {each: put(machine, bytes.fromhex(code)) for each, code in functions.items()}
    return {each: [machine.call(at), machine.call(at)] for each, at in placed.items()}


def test_two_processes_read_the_same(arch):
    """Clocks and random numbers are equal in another process, and differ with the seed."""
    code = f"import json; from tests.emulator.test_clocks import values; print(json.dumps(values({arch.name!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    mine = values(arch.name)
    assert json.loads(done.stdout) == mine
    other = values(arch.name, seed=1)
    assert other == values(arch.name, seed=1)
    for name in facts(arch).run.random:
        assert mine[name] != other[name]


def test_clocks_follow_guest_time(arch):
    """A clock never runs backwards, and advances by its frequency while the guest sleeps."""
    machine = Machine(arch)
    for name, code in facts(arch).run.clocks.items():
        read = put(machine, bytes.fromhex(code))
        before, then = machine.call(read), machine.call(read)
        assert before < then
        machine.sleep(2)
        hertz = facts(arch).run.hertz.get(name, 1_000_000_000)
        assert 2 * hertz <= machine.call(read) - then < 2.001 * hertz


def test_random_numbers_are_not_all_alike(arch):
    """Each reading of a generator is another number, as wide as the register that takes it."""
    machine = Machine(arch)
    if not facts(arch).run.random:
        pytest.skip(f"{arch.name} has no random numbers")
    for code, width in facts(arch).run.random.values():
        read = put(machine, bytes.fromhex(code))
        found = {machine.call(read) for _ in range(16)}
        assert len(found) == 16
        assert width - 4 <= max(found).bit_length() <= width


def test_loops_that_wait_for_a_clock_end(arch):
    """Code that polls a clock until time has passed comes to its end."""
    machine = Machine(arch)
    wait = put(machine, bytes.fromhex(facts(arch).run.wait))
    assert 20_000 <= machine.call(wait, 20_000) < 30_000


def test_code_that_was_changed_reads_the_clock_as_well(arch):
    """Where a clock's instruction takes the place of other code, guest time answers."""
    needs(arch, "patch")
    machine = Machine(arch)
    for code in facts(arch).run.clocks.values():
        read = put(machine, bytes.fromhex(code))
        plain = put(machine, bytes(len(bytes.fromhex(code))))
        machine.execmem.poke(plain, bytes.fromhex(code))
        first = machine.call(read)
        assert 0 < machine.call(plain) - first < 10_000
