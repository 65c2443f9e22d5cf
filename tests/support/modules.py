# SPDX-License-Identifier: GPL-2.0-or-later
"""Minimal kernel modules for every architecture, out of the ELF writer.

They have the sections that a kernel build gives a module, one relocation of each kind that
a module cannot do without (a call, a pointer, a self-relative word) and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.support.elfwriter import (
    AARCH64,
    FUNC,
    GLOBAL,
    LOCAL,
    NOBITS,
    OBJECT,
    RISCV,
    WEAK,
    X86_64,
    A,
    Rela,
    Sec,
    Sym,
    W,
    X,
    write,
)

CALL = {X86_64: 4, AARCH64: 283, RISCV: 19}
ABS64 = {X86_64: 1, AARCH64: 257, RISCV: 2}
PREL32 = {X86_64: 2, AARCH64: 261, RISCV: 57}
# A call instruction without a target, and where its relocation sits.
CALL_CODE = {
    X86_64: (b"\xe8\0\0\0\0", 1, -4),
    AARCH64: (bytes.fromhex("00000094"), 0, 0),
    RISCV: (bytes.fromhex("97000000e7800000"), 0, 0),
}
# As the sample modules' own: they are taken for modules of the kernel that is modelled.
VERMAGIC = {
    X86_64: "6.12.0-samples SMP preempt mod_unload ",
    AARCH64: "6.12.0-samples SMP mod_unload aarch64",
    RISCV: "6.12.0-samples SMP mod_unload riscv",
}
RETURN = {
    X86_64: b"\xc3",
    AARCH64: bytes.fromhex("c0035fd6"),
    RISCV: bytes.fromhex("8280"),
}
# A jump to itself.
SPIN = {
    X86_64: b"\xeb\xfe",
    AARCH64: bytes.fromhex("00000014"),
    RISCV: bytes.fromhex("01a0"),
}
# struct module of Linux 6.12: where init and exit stand, from the kernels' type information.
INIT_AT = {X86_64: 312, AARCH64: 312, RISCV: 312}
EXIT_AT = {X86_64: 1200, AARCH64: 1192, RISCV: 1152}
THIS_MODULE_SIZE = {X86_64: 1280, AARCH64: 1280, RISCV: 1216}


# Code that keeps the return address over calls, and brings it back.
KEEP = {
    X86_64: (b"", b""),
    AARCH64: (bytes.fromhex("fd7bbfa9"), bytes.fromhex("fd7bc1a8")),
    RISCV: (bytes.fromhex("411106e4"), bytes.fromhex("a2604101")),
}


def calls(
    machine: int, *targets: str | tuple[str, int], keep: bool = False
) -> tuple[bytes, tuple[Rela, ...]]:
    """Return code that calls each target (a name, or name and addend) and returns; and its relocations.

    Only with `keep` it can be executed.
    """
    code, at, addend = CALL_CODE[machine]
    before, after = KEEP[machine] if keep else (b"", b"")
    text, relas = before, []
    for target in targets:
        name, more = (target, 0) if isinstance(target, str) else target
        relas.append(Rela(len(text) + at, CALL[machine], name, addend + more))
        text += code
    return text + after + RETURN[machine], tuple(relas)


def exports(
    machine: int, names: Sequence[str], *, gpl: bool = False
) -> tuple[list[Sec], list[Sym]]:
    """Return `__ksymtab` of `names` (defined elsewhere) and its strings, with their symbols."""
    width = 8 if machine == RISCV else 4
    kind = ABS64[machine] if width == 8 else PREL32[machine]
    suffix = "_gpl" if gpl else ""
    strings, relas = b"", []
    symbols = [Sym(f"__kstrtabns{suffix}", "__ksymtab_strings", 0, bind=LOCAL)]
    strings += b"\0"
    for index, name in enumerate(names):
        symbols.append(Sym(f"__kstrtab_{name}", "__ksymtab_strings", len(strings), bind=LOCAL))
        strings += name.encode() + b"\0"
        at = 3 * width * index
        relas += [
            Rela(at, kind, name),
            Rela(at + width, kind, f"__kstrtab_{name}"),
            Rela(at + 2 * width, kind, f"__kstrtabns{suffix}"),
        ]
    table = bytes(3 * width * len(names))
    return [
        Sec(f"__ksymtab{suffix}", table, A, align=width, relas=relas),
        Sec("__ksymtab_strings", strings, A),
    ], symbols


def versions(*names: str) -> Sec:
    """Return `__versions` that vouches for `names`: 64 bytes each, CRC first."""
    data = b"".join(bytes(8) + name.encode().ljust(56, b"\0") for name in names)
    return Sec("__versions", data, A, align=32)


def module(
    machine: int,
    name: str = "mini",
    *,
    depends: str = "",
    undefined: Sequence[str] = ("_printk",),
    weak: Sequence[str] = (),
    exported: Sequence[str] = (),
    percpu: int = 0,
    extra: Sequence[Sec] = (),
    symbols: Sequence[Sym] = (),
    plt: bool = True,
    info: str = "",
    spins: str = "",
    vermagic: str | None = None,
    this_size: int = 0,
    entries: Mapping[int, str] | None = None,
    functions: tuple[str, str] = ("init_module", "cleanup_module"),
    texts: tuple[str, str] = (".init.text", ".exit.text"),
    runs: bool = False,
    init: bytes = b"",
) -> bytes:
    """Return a loadable module.

    Parameters
    ----------
    undefined
        Names that its function `NAME_work` calls.
    weak
        Weak undefined names that a pointer in `.data` holds.
    exported
        Names of functions that it defines and exports.
    percpu
        Bytes of `.data..percpu`.
    extra, symbols
        Further sections and symbols.
    plt
        Whether the arm64 placeholders are there.
    info
        A further `tag=value` of `.modinfo`.
    spins
        `init` or `exit`: that never returns.
    vermagic
        What the module says that it was built for; as sample modules do by default.
    this_size, entries
        Bytes of struct module, and offset -> function of its pointers; 6.12's by default.
    functions, texts
        What init and exit are called, and the sections that they are in.
    runs
        Whether its functions can be executed, not only linked.
    init
        Code of its init, without relocations; by default it calls `NAME_work`.
    """
    work, work_relas = calls(machine, *undefined, keep=runs)
    text, bodies = work, []
    for body in exported:
        text += bytes(-len(text) % 16)
        bodies.append(Sym(body, ".text", len(text), len(RETURN[machine]), FUNC))
        text += RETURN[machine]
    leave, init_relas = RETURN[machine], ()
    if spins == "init":
        init = SPIN[machine]
    elif spins == "exit":
        init, leave = RETURN[machine], SPIN[machine]
    elif not init:
        init, init_relas = calls(machine, f"{name}_work", keep=runs)
    pointers = [f"{name}_work", *weak]
    data_relas = [Rela(8 * i, ABS64[machine], target) for i, target in enumerate(pointers)]
    magic = VERMAGIC[machine] if vermagic is None else vermagic
    tags = ("license=GPL", f"depends={depends}", f"name={name}", f"vermagic={magic}")
    modinfo = "".join(f"{tag}\0" for tag in (*tags, info) if tag)
    if entries is None:
        entries = {INIT_AT[machine]: functions[0], EXIT_AT[machine]: functions[1]}
    this = [Rela(at, ABS64[machine], target) for at, target in entries.items()]
    this_size = this_size or THIS_MODULE_SIZE[machine]
    this_module = (bytes(24) + name.encode()).ljust(this_size, b"\0")
    relative = [Rela(0, PREL32[machine], f"{name}_table", 8)]
    sections = [
        Sec(".text", text, A | X, align=16, relas=work_relas),
        Sec(texts[0], init, A | X, align=16, relas=init_relas),
        Sec(texts[1], leave, A | X, align=16),
        Sec(".rodata", bytes(4) + b"read only\0", A, align=8, relas=relative),
        Sec(".init.rodata", b"init rodata\0", A, align=4),
        Sec(".modinfo", modinfo.encode(), A),
        Sec(".data", bytes(8 * len(pointers)) + b"data", A | W, align=8, relas=data_relas),
        Sec(".init.data", b"init data", A | W, align=8),
        Sec(".data..ro_after_init", b"sealed later", A | W, align=8),
        Sec(".bss", b"", A | W, NOBITS, 32, size=40),
        Sec(".gnu.linkonce.this_module", this_module, A | W, align=64, relas=this),
    ]
    table = [
        Sym(f"{name}_work", ".text", 0, len(work), FUNC, LOCAL),
        Sym(f"{name}_table", ".rodata", 0, 14, OBJECT, LOCAL),
        Sym(functions[0], texts[0], 0, len(init), FUNC),
        Sym(functions[1], texts[1], 0, len(leave), FUNC),
        Sym("__this_module", ".gnu.linkonce.this_module", 0, len(this_module), OBJECT),
        *bodies,
        *(Sym(n) for n in dict.fromkeys(undefined)),
        *(Sym(n, bind=WEAK) for n in weak),
    ]
    if exported:
        more, names = exports(machine, exported)
        sections += more
        table += names
    if percpu:
        sections.append(Sec(".data..percpu", b"\xa5" * percpu, A | W, align=64))
        table.append(Sym(f"{name}_percpu", ".data..percpu", 8, 8, OBJECT, GLOBAL))
    if machine == AARCH64 and plt:
        sections += [
            Sec(".plt", b"\0", A | X),
            Sec(".init.plt", b"\0", A),
            Sec(".text.ftrace_trampoline", b"\0", A | X),
            Sec(".init.text.ftrace_trampoline", b"\0", A),
        ]
    return write(machine, [*sections, *extra], [*table, *symbols])
