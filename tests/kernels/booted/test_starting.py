# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel must have to be booted here, and how much memory it is given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import archs
from archs.levels.boot import Need
from kernels.booted import starting
from kernels.booted.starting import Parameters, lacking, plan_of

NEEDS = (
    Need(option="CONFIG_ONE", functions=("one", "one_of_old"), what="the first"),
    Need(option="CONFIG_TWO", functions=("two",), what="the second"),
)


def _image(**symbols: int) -> Any:
    loaded = SimpleNamespace(contents={}, address=0, size=0, entry=0)
    return SimpleNamespace(
        arch=archs.arch("x86_64"), loaded=loaded, header=b"", name="vmlinux", symbols=symbols
    )


def test_what_a_kernel_is_built_without_is_said_by_its_option() -> None:
    """What a kernel is built without is said by its option."""
    assert lacking(_image(one_of_old=1, two=2), NEEDS) == ""
    assert lacking(_image(one=1), NEEDS) == "it is built without CONFIG_TWO (the second)"
    assert "CONFIG_ONE" in lacking(_image(), NEEDS)


def test_kernels_with_kasan_get_more_memory() -> None:
    """Kernels with KASAN get more memory, where nobody says how much."""
    plain = plan_of(_image(), Parameters()).memory
    assert plan_of(_image(kasan_report=1), Parameters()).memory == plain * 3 // 2
    assert plan_of(_image(kasan_report=1), Parameters(memory=plain)).memory == plain
    assert starting.Parameters().memory == 0


def test_kernels_that_print_in_threads_are_told_not_to() -> None:
    """Kernels with such threads are told to leave out what begins them; others are told nothing."""
    assert "initcall" not in plan_of(_image(), Parameters()).command_line
    for name in ("printk_set_kthreads_ready", "printk_activate_kthreads"):
        words = plan_of(_image(**{name: 1}), Parameters(command_line="quiet")).command_line.split()
        assert words[-2:] == [f"initcall_blacklist={name}", "quiet"]


def test_every_architecture_that_boots_says_what_prints(arch: archs.Arch) -> None:
    """Every architecture that boots says what its kernels print with."""
    if arch.boot is not None:
        assert arch.boot.console.option.startswith("CONFIG_")
        assert arch.boot.console.functions
