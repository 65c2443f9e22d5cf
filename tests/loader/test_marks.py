# SPDX-License-Identifier: GPL-2.0-or-later
"""What a module's own bytes show of its kernel, held to configurations and to what contradicts."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

import archs
from execmem.check.elfwriter import (
    AARCH64,
    FUNC,
    LOCAL,
    RISCV,
    SECTION,
    UNDEF,
    X86_64,
    A,
    Rela,
    Sec,
    Sym,
    X,
    write,
)
from loader.build import Source, build_of
from loader.elf import parse
from loader.elfview import ElfView
from loader.files import read_module
from loader.kernel.find import find_kernel
from loader.marks import marks_of
from tests.support.kernels import kernel_image

ABS64 = {X86_64: 1, AARCH64: 257, RISCV: 2}
ENDBR = bytes.fromhex("f30f1efa")
NOP, PACIASP, BTI_C, RET = (
    struct.pack("<I", word) for word in (0xD503201F, 0xD503233F, 0xD503245F, 0xD65F03C0)
)


def object_of(
    machine: int,
    code: bytes,
    *more: Sec,
    needs: tuple[str, ...] = (),
    site: int | None = None,
    start: int = 0,
    magic: str = "",
    info: str = "",
) -> ElfView:
    """Return an object with one function, at `start` of its text.

    Parameters
    ----------
    site
        Where the tracer's table points at; None: it has none.
    """
    sections = [Sec(".text", code, A | X, align=8), *more]
    text = f"vermagic={magic}\0" * bool(magic) + info
    sections += [Sec(".modinfo", text.encode(), A)] if text else []
    if site is not None:
        sections.append(
            Sec(
                "__patchable_function_entries",
                bytes(8),
                A,
                relas=[Rela(0, ABS64[machine], ".text", site)],
            )
        )
    symbols = [
        Sym(one.name, one.name, type=SECTION, bind=LOCAL) for one in sections if one.flags & X
    ]
    symbols += [Sym("some", ".text", start, len(code) - start, type=FUNC)]
    symbols += [Sym(name, UNDEF) for name in needs]
    return parse(write(machine, sections, symbols), "one.ko")


def shown(view: ElfView) -> dict[str, str]:
    """Return what is shown: fact -> value."""
    return {name: mark.value for name, mark in marks_of(view).items()}


def table(entry: int, count: int) -> tuple[Sec, Sec]:
    """Return alternatives whose entries have so many bytes."""
    relas = [
        Rela(entry * n + at, 2, name, 0)
        for n in range(count)
        for at, name in ((0, ".text"), (4, ".altinstr_replacement"))
    ]
    return (
        Sec(".altinstructions", bytes(entry * count), A, relas=relas),
        Sec(".altinstr_replacement", bytes(8), A | X),
    )


@pytest.mark.parametrize(
    ("view", "fact", "value"),
    [
        (object_of(X86_64, b"\x90" * 8 + b"\xc3\xcc"), "returns", "plain"),
        (object_of(X86_64, b"\x90" * 8 + b"\xe9\0\0\0\0"), "returns", None),
        (object_of(X86_64, b"\xc3" * 8, Sec(".return_sites", bytes(4), A)), "returns",
         "through __x86_return_thunk"),
        (object_of(X86_64, bytes(8), info="retpoline=Y\0"), "indirect branches",
         "through retpolines"),
        (object_of(X86_64, bytes(8)), "indirect branches", None),
        (object_of(X86_64, bytes(8), *table(14, 6)), "alternatives", "entries of 14 bytes"),
        (object_of(X86_64, bytes(8), *table(12, 7)), "alternatives", "entries of 12 bytes"),
        (object_of(X86_64, bytes(8), *table(13, 7)), "alternatives", None),
        (object_of(X86_64, ENDBR + bytes(8)), "landing pads", "ENDBR64"),
        (object_of(X86_64, bytes(8) + ENDBR), "landing pads", None),
        (object_of(X86_64, bytes(8), needs=("__stack_chk_fail",)), "stack guard", "%gs:40"),
        (object_of(X86_64, bytes(8), needs=("__stack_chk_fail", "__ref_stack_chk_guard")),
         "stack guard", "__ref_stack_chk_guard"),
        (object_of(X86_64, bytes(8), Sec(".call_sites", bytes(4), A)), "call depth",
         "sites of calls are listed"),
        (object_of(AARCH64, 2 * NOP + PACIASP + RET, site=0), "function entries",
         "NOPs at each function"),
        (object_of(AARCH64, 4 * NOP + RET, site=0, start=8), "function entries",
         "CALL_OPS, a literal in front of each function"),
        (object_of(AARCH64, BTI_C + 2 * NOP + RET, site=4), "function entries",
         "NOPs behind the landing pad"),
        (object_of(AARCH64, BTI_C + 2 * NOP + RET, site=4), "landing pads", "BTI c"),
        (object_of(AARCH64, BTI_C + 2 * NOP + RET), "landing pads", None),  # written by hand
        (object_of(AARCH64, 2 * NOP + PACIASP + RET, site=0), "return addresses",
         "signed (PACIASP)"),
        (object_of(AARCH64, 2 * NOP + RET, site=0), "return addresses", None),
        (object_of(AARCH64, RET, needs=("__stack_chk_fail", "__stack_chk_guard")),
         "stack guard", "the global __stack_chk_guard"),
        (object_of(RISCV, bytes(24), site=0, start=8), "function entries",
         "CALL_OPS, a literal in front of each function"),
        (object_of(RISCV, bytes(24), site=0, needs=("__stack_chk_fail",)), "stack guard",
         "in the task"),
        (object_of(RISCV, bytes(24), Sec(".kcfi_traps", bytes(4), A)),
         "indirect calls are checked", "kCFI, a type word in front of each function"),
        (object_of(AARCH64, RET, needs=("__kcfi_typeid_x",)),
         "indirect calls are checked", "kCFI, a type word in front of each function"),
        (object_of(AARCH64, RET, needs=("my__cfi_x",)), "indirect calls are checked", None),
    ],
)  # fmt: skip
def test_what_a_module_shows(view: ElfView, fact: str, value: str | None) -> None:
    """Each row by what shows it, and not by what looks like it."""
    assert shown(view).get(fact) == value


@pytest.mark.parametrize(
    ("view", "conflict"),
    [
        (object_of(X86_64, bytes(8), *table(12, 3), magic="6.12.1 SMP"),
         "alternatives: entries of 12 bytes by the sections, before 6.3 only; 6.12 by the version magic"),
        (object_of(X86_64, bytes(8), *table(14, 3), magic="6.1.9 SMP"),
         "alternatives: entries of 14 bytes by the sections, since 6.3 only; 6.1 by the version magic"),
        (object_of(AARCH64, 4 * NOP + RET, site=0, start=8, magic="6.1.9 SMP"),
         ("function entries: CALL_OPS, a literal in front of each function by the instruction bytes, "
         "since 6.3 only; 6.1 by the version magic")),
    ],
)  # fmt: skip
def test_a_version_that_cannot_be_is_a_conflict(view: ElfView, conflict: str) -> None:
    """Bytes come first; what the version magic says instead is said by name."""
    assert build_of(view).conflicts == (conflict,)


@pytest.mark.parametrize(
    ("view", "config", "conflict"),
    [
        (object_of(X86_64, b"\x90" * 8 + b"\xc3"), "CONFIG_MITIGATION_RETHUNK=y\n",
         "returns: plain by the instruction bytes, CONFIG_MITIGATION_RETHUNK=y by the configuration"),
        (object_of(X86_64, bytes(8), info="retpoline=Y\0"), "# CONFIG_RETPOLINE is not set\n",
         ("indirect branches: through retpolines by the sections, no CONFIG_MITIGATION_RETPOLINE or "
         "CONFIG_RETPOLINE by the configuration")),
        (object_of(AARCH64, 4 * NOP + RET, site=0), "CONFIG_DYNAMIC_FTRACE_WITH_CALL_OPS=y\n",
         ("function entries: NOPs at each function by the instruction bytes, "
         "CONFIG_DYNAMIC_FTRACE_WITH_CALL_OPS=y by the configuration")),
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_be_is_a_conflict(
    view: ElfView, config: str, conflict: str
) -> None:
    """A module that was built otherwise than the kernel that is given."""
    kernel = kernel_image(view.arch, "6.9.1-mine SMP", config=f"CONFIG_SMP=y\n{config}")
    assert conflict in build_of(view, kernel).conflicts


def test_real_modules_show_what_their_configuration_says(
    arch: archs.Arch, kernels: dict[str, Path], corpus: Path
) -> None:
    """No module contradicts it, and some module shows each row that it has."""
    for release, folder in kernels.items():
        kernel = find_kernel(folder).read()
        files = sorted(folder.glob("lib/modules/*/kernel/**/*.ko*"))
        files = files or sorted(corpus.glob("lib/modules/*/kernel/**/*.ko*"))
        seen = set()
        for file in files[::2]:
            build = build_of(parse(read_module(file), file.name), kernel)
            assert build.conflicts == (), (release, file.name)
            seen |= {(name, fact.value) for name, fact in build.shown.items()}
            assert {fact.source for fact in build.shown.values()} <= {
                Source.SECTIONS,
                Source.INSTRUCTIONS,
            }
        wanted = {
            (row.fact, row.value)
            for row in arch.link.marks
            if not row.against(kernel.config)
            and row.in_version(build.version.value)
            and row.options != ()
        }
        # One of the two forms of entries has no option of its own.
        assert wanted <= seen, release
        assert not files or seen, release
