# SPDX-License-Identifier: GPL-2.0-or-later
"""Recorded boots again in booted kernels: places, results and bytes of each module in its turn."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs
import numpy as np
import pytest

from archs.environment import Environment
from execmem.diffing.diff import predict
from execmem.diffing.differences import kind_of
from loader.elf import parse
from loader.recording import BASE, RecordedBoot, Recording, image_of, runs
from machine.booted.machine import BootedMachine
from tests.support import booted
from tests.support.replayed import Replay, Replayed

# With EXECMEM_LONG all loads of every boot, else the first ones of a boot of each architecture.
LONG = "EXECMEM_LONG" in os.environ
MOST = None if LONG else 8
OFF = "mitigations=off"
ENODEV = 19
# What the CPU's model decides in code; what the running kernel does in data.
OF_THE_CPU = {"alternatives", "same_size_alternatives", "paravirt"}
OF_THE_RUN = OF_THE_CPU | {"running_kernel"}


def named(variable: str) -> list[Path]:
    """Return the folders that a variable lists."""
    return [Path(part) for part in os.environ.get(variable, "").split(os.pathsep) if part]


def release_of(folder: Path) -> str:
    """Return the release that a recorded boot's banner says; empty without one."""
    banner = folder / "boot" / BASE / "version"
    return banner.read_text().split()[2] if banner.is_file() else ""


def images(folder: Path) -> set[str]:
    """Return the releases of the images in a kernel's folder."""
    found = (path.name.partition("-")[2] for path in folder.glob("boot/vmlinu*"))
    return {name.removesuffix(".xz").removesuffix(".gz").removesuffix(".zst") for name in found}


def boots() -> list[tuple[str, Path, Path]]:
    """Return names, folders of recorded boots without KASLR, and of their kernels.

    Nothing is read of a boot here but its banner: every test process does this.
    """
    kernels = booted.releases()
    found: dict[str, tuple[str, Path, Path]] = {}
    for oracle in named("EXECMEM_ORACLE"):
        for place in sorted(path for path in oracle.glob("*") if list(path.glob(f"{BASE}/*.json"))):
            for name, folder, arch in kernels:
                if release_of(place) in images(folder):
                    found[name if LONG else arch.name] = name, place, folder
    return sorted(found.values())


BOOTS = boots()


def again(run: RecordedBoot, folder: Path) -> tuple[list[Replayed], RecordedBoot]:
    """Return a boot's loads, each again, and what this boot says of itself."""
    off = OFF in run.boot.command_line
    if LONG:
        machine = BootedMachine(kernel=folder, command_line=OFF if off else "")
    else:
        machine = booted.machine(folder)
    corpora = [path for root in named("EXECMEM_CORPUS") for path in sorted(root.iterdir())]
    roots = [root for root in (*corpora, folder) if list(root.glob(f"lib/modules/{run.kernel}"))]
    modules = machine.kernel.modules
    with machine.fork():
        replay = Replay(machine, run, tuple(roots))
        found = list(replay.loads(MOST)), replay.boot
    modules.on_relocated = modules.before_init = None
    del machine, replay, modules
    gc.collect()  # half a gigabyte
    return found


@pytest.mark.parametrize(
    ("place", "folder"), [boot[1:] for boot in BOOTS], ids=[boot[0] for boot in BOOTS]
)
def test_a_recorded_boot_again(
    place: Path, folder: Path, record_property: Callable[[str, object], None]
) -> None:
    """Every module gets the recorded addresses, sizes and result, and its bytes but for the CPU's."""
    (run,) = runs(place, (BASE,))
    found, boot = again(run, folder)
    known = [one for one in found if one.recorded is not None]
    made = [one for one in known if one.made is not None]
    assert len(made) > (5 if LONG else 1)
    shifts = {
        one.made.percpu - one.recorded.percpu
        for one in made
        if one.made and one.recorded and one.made.percpu and one.recorded.percpu
    } - {0}
    counts: Counter[str] = Counter(modules=len(known), files=len(made))
    for one in known:
        assert one.recorded is not None
        assert dict(one.regions) == dict(one.recorded.regions), one.name
        counts["regions"] += len(one.regions)
        if one.made is None:
            continue
        if one.errno != one.recorded.errno:
            assert one.errno == ENODEV, one.name
            assert of_a_cpu(one.made), one.name
            counts[f"init of {one.name}"] += 1
        same = same_relocated(one.made, one.recorded, shifts)
        counts["relocated as recorded"] += same
        if same and LONG:
            wrong = differing(one.made, one.recorded, boot.environment, run.environment)
            code = {mechanism for kind, mechanism in wrong if kind != "data"}
            assert code <= OF_THE_CPU, (one.name, wrong)
            assert {mechanism for _, mechanism in wrong} <= OF_THE_RUN, (one.name, wrong)
            for (kind, mechanism), number in wrong.items():
                counts[f"{kind}: {mechanism}"] += number
            counts["bytes"] += sum(section.size for section in one.made.compared)
    record_property(run.kernel, dict(counts))
    assert counts["relocated as recorded"] > len(made) * 3 // 4


def of_a_cpu(recording: Recording) -> bool:
    """Return whether a module's init asks what the CPU has: it says so, or calls who knows."""
    image = image_of(recording)
    assert image is not None
    knows = {"cpu_have_feature", "boot_cpu_data", "x86_match_cpu", "cpu_has_xfeatures", "riscv_isa"}
    knows |= {"kvm_init", "__riscv_isa_extension_available"}
    return b"alias=cpu:type:" in image or not knows.isdisjoint(recording.symbols)


def same_relocated(made: Recording, recorded: Recording, shifts: set[int]) -> bool:
    """Return whether a module's relocated bytes are the recorded ones.

    Where per-cpu memory of a module whose file is not at hand is missing, others' is elsewhere;
    nothing else may be.
    """
    wrong = [
        ours.name
        for ours, theirs in zip(made.compared, recorded.compared, strict=True)
        if ours.relocated != theirs.relocated
    ]
    moved = {
        made.symbols[name] - value
        for name, value in recorded.symbols.items()
        if made.symbols.get(name, value) != value
    }
    assert moved <= shifts, made.name
    assert not wrong or moved or made.percpu != recorded.percpu, (made.name, wrong)
    return not wrong


def differing(
    made: Recording, recorded: Recording, ours: Environment, theirs: Environment
) -> Mapping[tuple[str, str], int]:
    """Return kind and mechanism of final bytes that are not the recorded ones -> how many."""
    _, changes = recorded.raw()
    _, here = made.raw()
    if changes is None or here is None:
        return {}
    view = parse(image_of(made) or b"", f"{made.name}.ko")
    keys = attrs.evolve(
        ours,
        static_keys=made.static_keys or {},
        static_calls={**ours.static_calls, **made.static_calls},
    )
    found: dict[tuple[str, str], int] = {}
    claims = [predict(made, view, environment) for environment in (keys, theirs)]
    for section, wanted in zip(made.compared, recorded.compared, strict=True):
        if section.final == wanted.final:
            continue
        a, b = (
            np.frombuffer(data, np.uint8, s.size, s.offset)
            for data, s in ((here, section), (changes, wanted))
        )
        at = claims[0].linked.offsets[section.index]
        for place in (np.flatnonzero(a != b) + at).tolist():
            names = (names[owner[place]] for owner, names in (c.owners for c in claims))
            mechanism = next((name for name in names if name), "")
            key = kind_of(section), mechanism
            found[key] = found.get(key, 0) + 1
    return found
