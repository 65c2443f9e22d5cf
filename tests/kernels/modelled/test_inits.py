# SPDX-License-Identifier: GPL-2.0-or-later
"""Distribution modules run their init to its end, with nothing but the kernel's own symbols.

Needs EXECMEM_CORPUS. All modules of an architecture go into one machine, as on a real one,
whose unknown symbols stop the guest; so what their inits find is what others left there.
"""

from __future__ import annotations

import attrs
import pytest

from emulator.faults import Fault
from loader.errors import InitFailed
from loader.loaded import State
from machine.face import Machine

# What a person would try first: their init has to return 0.
LARGE = (
    "mac80211 cfg80211 ext4 jbd2 btrfs xfs sunrpc nfsd bridge veth loop dm_mod drm nouveau".split()
)
# Unloading writes what was sealed after init, where the CPU has AES instructions: the exit of
# arm64's asks again whether it has them, and the answer is kept in __ro_after_init
# (crypto/aegis128-neon.c). A real kernel stops there, too.
BROKEN_EXITS = {"aegis128": "ro_after_init"}


@attrs.frozen
class Story:
    """What became of each module: what its init returned, or why it did not return."""

    machine: Machine
    returned: dict[str, int | None]
    failed: dict[str, Exception]
    live_before: dict[int, int]


_STORIES = {}


@pytest.fixture
def story(arch, corpus):
    """Load every module of an architecture once."""
    if arch.name not in _STORIES:
        _STORIES[arch.name] = _load_all(arch, corpus)
    return _STORIES[arch.name]


def _load_all(arch, corpus):
    machine = Machine(arch, root=corpus)
    names = sorted(
        path.name.split(".ko")[0] for path in corpus.glob("lib/modules/*/kernel/**/*.ko*")
    )
    machine.load("libcrc32c").unload()  # what the kernel itself makes at its first use stays
    before, failed = machine.kernel.heap.live(), {}
    for name in names:
        if name.replace("-", "_") not in machine.modules:
            try:
                machine.load(name)
            except (Fault, InitFailed) as error:
                failed[name] = error
    returned = {}
    for name, module in machine.modules.items():
        if module.report.init_fault is not None:
            failed[name] = module.report.init_fault
        else:
            returned[name] = module.report.init_result
    return Story(machine, returned, failed, before)


def test_every_init_returns(story):
    """All reach their return without an unknown symbol, return 0 where they have an init, and live."""
    assert story.failed == {}
    assert set(story.returned.values()) <= {None, 0}
    assert all(story.machine.modules[name].state is State.LIVE for name in story.returned)


def test_large_modules_are_among_them(story):
    """Network stacks, file systems and drivers return 0."""
    assert {name: story.returned.get(name, -1) for name in LARGE} == dict.fromkeys(LARGE, 0)


def test_what_was_put_off_did_not_fail(story):
    """Work, timers and callbacks that the inits left behind ran without a fault."""
    assert story.machine.kernel.oopses == []


def test_modules_registered_what_they_are_for(story):
    """File systems, algorithms, devices and links are there by their names."""
    registry = story.machine.kernel.registry
    names = {kind: {record.name for record in registry.find(kind)} for kind in ("filesystem",)}
    assert {"ext4", "ext3", "xfs", "btrfs", "nfsd"} <= names["filesystem"]
    assert next(registry.find("rtnl link", "veth")).owner == "veth"
    assert {"btrfs-control", "loop-control"} <= {r.name for r in registry.find("misc device")}
    assert sum(1 for r in registry.find("disk") if r.name.startswith("loop")) == 8  # max_loop
    assert any(r.name == "nl80211" for r in registry.find("generic netlink family"))


def test_all_of_it_goes_again(story):
    """Exits run, users before what they use; no object, record or page stays behind."""
    machine, faults = story.machine, {}
    for module in reversed(list(machine.modules.values())):
        try:
            module.unload()
        except Fault as fault:
            faults[module.name] = fault
    assert faults.keys() <= BROKEN_EXITS.keys()
    for name, fault in faults.items():
        assert BROKEN_EXITS[name] in fault.reason
    left = {a: n for a, n in machine.kernel.heap.live().items() if a not in story.live_before}
    assert left == {}
    assert machine.modules == {}
    assert len(machine.kernel.registry) == 0
    assert machine.kernel.oopses == []
    machine.check()
    del _STORIES[machine.arch.name]
