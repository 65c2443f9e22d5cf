# SPDX-License-Identifier: GPL-2.0-or-later
"""Minimal kernel modules for every architecture, out of the ELF writer.

They have the sections that a kernel build gives a module, one relocation of each kind that
a module cannot do without (a call, a pointer, a self-relative word) and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from execmem.check.elfwriter import (
    FUNC,
    GLOBAL,
    LOCAL,
    NOBITS,
    OBJECT,
    WEAK,
    A,
    Rela,
    Sec,
    Sym,
    W,
    X,
    write,
)
from tests.archs.facts import facts


def calls(
    machine: int, *targets: str | tuple[str, int], keep: bool = False
) -> tuple[bytes, tuple[Rela, ...]]:
    """Return code that calls each target (a name, or name and addend) and returns; and its relocations.

    Only with `keep` it can be executed.
    """
    code, at, addend = facts(machine).link.call_code
    fields = ((at, facts(machine).link.call), *facts(machine).link.more_of_call)
    before, after = facts(machine).link.keep if keep else (b"", b"")
    text, relas = before, []
    for target in targets:
        name, more = (target, 0) if isinstance(target, str) else target
        relas += [Rela(len(text) + at, kind, name, addend + more) for at, kind in fields]
        text += code
    return text + after + facts(machine).link.ret, tuple(relas)


def exports(
    machine: int, names: Sequence[str], *, gpl: bool = False
) -> tuple[list[Sec], list[Sym]]:
    """Return `__ksymtab` of `names` (defined elsewhere) and its strings, with their symbols."""
    width = facts(machine).link.export_word
    kind = facts(machine).link.abs64 if width == 8 else facts(machine).link.prel32
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
        bodies.append(Sym(body, ".text", len(text), len(facts(machine).link.ret), FUNC))
        text += facts(machine).link.ret
    leave, init_relas = facts(machine).link.ret, ()
    if spins == "init":
        init = facts(machine).link.spin
    elif spins == "exit":
        init, leave = facts(machine).link.ret, facts(machine).link.spin
    elif not init:
        init, init_relas = calls(machine, f"{name}_work", keep=runs)
    pointers = [f"{name}_work", *weak]
    data_relas = [
        Rela(8 * i, facts(machine).link.abs64, target) for i, target in enumerate(pointers)
    ]
    magic = facts(machine).link.vermagic if vermagic is None else vermagic
    tags = ("license=GPL", f"depends={depends}", f"name={name}", f"vermagic={magic}")
    modinfo = "".join(f"{tag}\0" for tag in (*tags, info) if tag)
    if entries is None:
        entries = {
            facts(machine).link.init_at: functions[0],
            facts(machine).link.exit_at: functions[1],
        }
    this = [Rela(at, facts(machine).link.abs64, target) for at, target in entries.items()]
    this_size = this_size or facts(machine).link.this_module_size
    this_module = (bytes(24) + name.encode()).ljust(this_size, b"\0")
    prel32 = facts(machine).link.prel32
    relative = [] if prel32 is None else [Rela(0, prel32, f"{name}_table", 8)]
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
    if plt:
        for section, executable in facts(machine).link.placeholders:
            sections.append(Sec(section, b"\0", A | X if executable else A))
    return write(machine, [*sections, *extra], [*table, *symbols])
