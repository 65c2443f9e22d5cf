# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers of features by version, held to what kernels kept of their CPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

import archs
from archs import boot_arm64, boot_riscv64, boot_x86_64
from archs.environment import Environment
from archs.numbers import Held, Numbers
from loader.recording import runs

OF = {
    "x86_64": boot_x86_64.NUMBERS,
    "arm64": boot_arm64.CAPABILITIES,
    "riscv64": boot_riscv64.EXTENSIONS,
}
SOME = Numbers({"a": 1, "b": 2, "c": 3}, {(6, 1): {"b": 5}, (7, 2): {"c": None, "d": 3}})


@pytest.mark.parametrize(
    ("version", "known"),
    [
        ((6, 12), {"a": 1, "b": 2, "c": 3}),
        ((6, 1), {"a": 1, "b": 5, "c": 3}),
        ((7, 2), {"a": 1, "b": 2, "d": 3}),
        ((6, 6), {"a": 1, "c": 3}),  # b moved somewhere between
        ((6, 18), {"a": 1, "b": 2}),  # 3 changed hands
        ((5, 15), {"a": 1}),
        ((8, 0), {"a": 1}),
    ],
)
def test_between_versions_counts_what_did_not_move(
    version: tuple[int, int], known: dict[str, int]
) -> None:
    """Of a version without a row its neighbours tell, of one outside all of them."""
    assert SOME.of(version) == known


def test_what_a_boot_has_is_told_by_names_or_by_itself() -> None:
    """A kernel's own bitmap is in its own numbers, and all of them mean something."""
    named = Environment(features=frozenset({"a", "b"}), version=(6, 6))
    assert SOME.held(named) == Held(frozenset({1}), frozenset({1, 3}))
    kept = Environment(features=frozenset({"a"}), capabilities=frozenset({7}), version=(6, 6))
    assert SOME.held(kept) == Held(frozenset({7}))


@pytest.mark.parametrize(
    ("arch", "version", "name", "number"),
    [
        ("arm64", (6, 6), "ALWAYS_SYSTEM", 1),
        ("arm64", (5, 15), "ALWAYS_SYSTEM", None),  # something else was 1 in 5.10
        ("arm64", (6, 6), "HAS_LSE_ATOMICS", None),
        ("arm64", (6, 1), "HAS_LSE_ATOMICS", 26),
        ("x86_64", (6, 6), "popcnt", 151),
        ("x86_64", (6, 16), "lfence_rdtsc", 642),
        ("x86_64", (6, 6), "lfence_rdtsc", None),
        ("x86_64", (5, 15), "vnmi", 257),
        ("riscv64", (6, 6), "c", 2),
        ("riscv64", (6, 6), "zbb", None),
        ("riscv64", (6, 16), "zbb", 30),
    ],
)
def test_names_that_move_and_names_that_stay(
    arch: str, version: tuple[int, int], name: str, number: int | None
) -> None:
    """A few of each architecture, from the headers of both sides."""
    assert OF[arch].of(version).get(name) == number


def test_kernels_have_what_their_cpus_say(
    arch: archs.Arch, other_recordings: dict[str, Path]
) -> None:
    """What /proc/cpuinfo lists is set in the bitmap that the kernel kept, at our number."""
    seen = 0
    for release, folder in other_recordings.items():
        for run in runs(folder):
            kept = run.boot.capabilities
            known = OF[arch.name].of(tuple(map(int, release.split("."))))
            assert kept
            if arch.name == "x86_64":
                names = {*run.boot.cpu["flags"].split(), "always"}
            elif arch.name == "arm64":
                names = {"ALWAYS_BOOT", "ALWAYS_SYSTEM"}
                atomics = "atomics" in run.boot.cpu["Features"].split()
                assert (known["HAS_LSE_ATOMICS"] in kept) == atomics
            else:
                base, *more = run.boot.cpu["isa"].removeprefix("rv64").split("_")
                names = {*base.replace("v", ""), *more}
            for name in names & known.keys():
                assert known[name] in kept, (release, run.name, name)
                seen += 1
    assert seen > 3
