# SPDX-License-Identifier: GPL-2.0-or-later
"""The error family: one root, one line (two for a relocation), and fields that a program reads."""

from __future__ import annotations

import attrs
import pytest

from allocator.errors import AllocationError, ExecmemError
from allocator.types import Interval
from archs.reloc import Reach
from loader import errors
from loader.errors import LoadError, RelocationFailure

NO_ROOM = AllocationError("TEXT", 0x2000, (Interval(0x1000, 0x3000),), "full", "free some")

EXAMPLES = [
    (errors.BadModule("a.ko", "ELF header", "odd"), "a.ko: ELF header: odd"),
    (
        errors.MissingDependency("a.ko", ("b", "c"), (), "load them"),
        "a.ko: missing dependency: b, c; hint: load them",
    ),
    (
        errors.MissingDependency("a.ko", ("b",), ("f", "g"), "load it"),
        "a.ko: missing dependency: b (for f, g); hint: load it",
    ),
    (
        errors.UnresolvedSymbols("a.ko", ("f",), "try"),
        "a.ko: 1 unresolved symbol: f; hint: try",
    ),
    (
        errors.OutOfMemory("a.ko", NO_ROOM),
        "a.ko: cannot allocate 0x2000 bytes of TEXT in [0x1000, 0x3000): full; hint: free some",
    ),
    (errors.BadParameter("a", "n", "no number"), "a: parameter 'n': no number"),
    (
        errors.SymbolClash("a", ("f", "g"), ("b", "c")),
        "a: exports symbols that are exported already: f (by b), g (by c)",
    ),
    (
        errors.InitFailed("a", 12, "ENOMEM"),
        "a: init returned -12 (ENOMEM); the module was unloaded",
    ),
    (
        errors.LivepatchError("a", "a", ".klp.sym.b.f,0", "b has no symbol 'f'"),
        "a: .klp.sym.b.f,0: b has no symbol 'f'",
    ),
    (
        errors.LivepatchError("b", "a", "0x10", "found 01, expected 00"),
        "b: livepatch a: 0x10: found 01, expected 00",
    ),
    (errors.ModuleInUse("a", ("b", "c")), "a: in use by b, c"),
    (
        errors.KernelRefused("a", "init_module", 8, "ENOEXEC", ("a: bad vermagic",)),
        "a: init_module: -8 (ENOEXEC): a: bad vermagic",
    ),
    (errors.ModuleStateError("a", "unload", "going"), "a: cannot unload: the module is going"),
]


@pytest.mark.parametrize(("error", "text"), EXAMPLES, ids=lambda e: type(e).__name__)
def test_an_error_is_one_line_that_begins_with_the_module(error: LoadError, text: str) -> None:
    """Every refusal names the module first and fits on a line."""
    assert str(error) == text
    assert text.startswith(f"{error.module}: ")
    assert isinstance(error, ExecmemError)


def test_every_load_error_has_an_example() -> None:
    """No subclass is left out above; relocation errors are tested where they arise."""
    shown = {type(error) for error, _ in EXAMPLES}
    assert shown | {errors.RelocationError} == set(LoadError.__subclasses__())


def test_a_relocation_failure_without_a_value_gives_the_reason_alone() -> None:
    """Where no interval was missed the line ends with the reason, and no hint is invented."""
    failure = RelocationFailure(
        section=".data",
        offset=8,
        reloc="type 250",
        symbol="f",
        containing="",
        reason="unknown relocation type",
        place=0x1008,
        target=0x2000,
    )
    first, second = failure.text("a.ko").split("\n")
    assert first == "a.ko: .data+0x8: type 250 against 'f' unknown relocation type"
    assert second == "  place 0x1008, target 0x2000"
    ranged = attrs.evolve(failure, reason="out of range", value=-5, reach=Reach(0, 16), hint="go")
    assert ranged.text("a.ko").endswith(
        "out of range: -0x5 is not in [0x0, 0x10)\n  place 0x1008, target 0x2000; hint: go"
    )
