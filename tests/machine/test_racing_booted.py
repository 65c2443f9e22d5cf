# SPDX-License-Identifier: GPL-2.0-or-later
"""What real kernels do when they patch their own text, beside what ours does, and searched."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest

from emulator.faults import BadCall
from machine.booted.machine import BootedMachine
from machine.racing.booted import kernel_race
from machine.racing.finding import search
from machine.racing.recording import Recorder, record_patch
from machine.racing.scenarios import Ground, place_sites
from machine.racing.search import explore
from machine.racing.state import Arm, FlushAlias, MapAlias, Op, Put, Sync
from tests.support import booted

KERNELS = booted.some()
KEY = "bpf_stats_enabled_key"


@pytest.fixture(params=KERNELS, ids=[name for name, _, _ in KERNELS])
def machine(request: pytest.FixtureRequest) -> Iterator[BootedMachine]:
    """Return each kernel that is at hand, booted, as it was at first."""
    _, folder, _ = request.param
    found = booted.machine(folder, folder if list(folder.rglob("*.ko*")) else None)
    with found.fork():
        yield found
    found.interposing.stop()


def skeleton(program: tuple[Op, ...]) -> list[object]:
    """Return what is stored, when CPUs are synchronised, and when the handler knows sites."""
    found: list[object] = []
    for op in program:
        if isinstance(op, Put):
            found.append(op.data)
        elif isinstance(op, Sync):
            found.append("sync")
        elif isinstance(op, Arm):
            found.append("knows" if op.sites else "forgets")
    return found


@pytest.mark.parametrize("on", [True, False])
def test_kernels_patch_as_we_do(machine: BootedMachine, on: bool) -> None:
    """The same bytes in the same order, with a synchronisation at the same places.

    Sites are the kernel's own: it chose them, and what stands there now.
    """
    if not on:
        kernel_race(machine, KEY)
    scenario = kernel_race(machine, KEY, on=on)
    sites = scenario.race.places
    assert len(sites) == 2
    assert all(site.old != site.new for site in sites)
    assert [machine.read(site.address, len(site.new)) for site in sites] == [s.new for s in sites]
    ground = Ground(machine.arch)
    apart = [(0x100 * number, site.old, site.new) for number, site in enumerate(sites)]
    recorder = Recorder(ground.machine, place_sites(ground, apart), executors=1)
    assert skeleton(scenario.race.programs[0]) == skeleton(record_patch(recorder))


def test_kernels_store_through_the_alias_that_we_say_they_have(machine: BootedMachine) -> None:
    """One page, unmapped and dropped behind each store, of one TLB or of all; without that it goes wrong."""
    race = kernel_race(machine, KEY).race
    program, poke = race.programs[0], machine.arch.text_poke
    assert poke is not None
    assert race.alias_pages == 1
    assert race.shared is not poke.private
    puts = [op for op in program if isinstance(op, Put)]
    assert {op.page for op in puts} == {0}
    assert {op.broadcast for op in program if isinstance(op, FlushAlias)} == {poke.broadcast}
    leads, stale = None, set()
    for op in program:
        if isinstance(op, MapAlias):
            stale |= {leads} - {None}
            leads = op.frame
        elif isinstance(op, FlushAlias):
            stale.clear()
        elif isinstance(op, Put):
            assert leads == race.frames[op.cell]
            assert not stale
    assert leads is None
    assert not stale
    kept = attrs.evolve(race, programs=([op for op in program if not isinstance(op, FlushAlias)],))
    kinds = {bad.kind for final in explore(kept).finals for bad in kept.verdict(final)}
    assert "alias" in kinds


def test_nothing_goes_wrong_in_kernels_but_what_is_not_promised(machine: BootedMachine) -> None:
    """All is covered; a kernel that neither traps nor stops rests on what nobody has written down."""
    live = machine.arch.live_patch
    assert live is not None
    for on in (True, False):
        scenario = kernel_race(machine, KEY, on=on, visits=2)
        finding = search(scenario)
        promised = live.breakpoint is not None or all(
            live.concurrent(site.old, site.new) for site in scenario.race.places
        )
        if promised:
            assert (finding.complete, finding.bad) == (True, None)
        else:
            assert finding.bad is not None
            assert finding.bad.kind in ("torn", "unpredictable")


def test_keys_that_are_none_are_refused(machine: BootedMachine) -> None:
    """A name that the kernel has not, and a key that stands so already."""
    with pytest.raises(BadCall, match="no such symbol"):
        kernel_race(machine, "nonesuch_key")
    kernel_race(machine, KEY)
    with pytest.raises(BadCall, match="nothing was stored"):
        kernel_race(machine, KEY)
