# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules for what load_module() checks: every tag, section and version can be another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from archs import by_machine
from execmem.check.elfwriter import (
    FUNC,
    LOCAL,
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
from tests.support.modules import calls

THIS = ".gnu.linkonce.this_module"
SIGNATURE = b"~Module signature appended~\n"


@attrs.frozen
class Offer:
    """An export: its function is there under the same name."""

    name: str
    gpl: bool = False
    space: str = ""
    crc: int | None = None


def debian(machine: int) -> str:
    """Return the version magic of a module for the kernel that is modelled."""
    arch = by_machine(machine)
    assert arch is not None
    return arch.loads.vermagic


def tree_magic(machine: int, release: str = "6.5.0-other", *, versions: bool = True) -> str:
    """Return the version magic of a module for some other kernel."""
    words = debian(machine).partition(" ")[2]
    return f"{release} {words if versions else words.replace('modversions ', '')}"


def signed(image: bytes, *, kind: int = 2, length: int = 16, odd: int = 0) -> bytes:
    """Return a module with something appended that is described as a signature."""
    info = bytes((odd, 0, kind, 0, 0, 0, 0, 0)) + length.to_bytes(4, "big")
    return image + bytes(16) + info + SIGNATURE


def version_table(crcs: Mapping[str, int]) -> Sec:
    """Return `__versions`."""
    rows = (crc.to_bytes(8, "little") + n.encode().ljust(56, b"\0") for n, crc in crcs.items())
    return Sec("__versions", b"".join(rows), A, align=32)


def extended(crcs: Mapping[str, int]) -> tuple[Sec, Sec]:
    """Return the extended form of it."""
    return (
        Sec("__version_ext_crcs", b"".join(c.to_bytes(4, "little") for c in crcs.values()), A),
        Sec("__version_ext_names", b"".join(n.encode() + b"\0" for n in crcs), A),
    )


def this_module(machine: int, *, size: int | None = None, flags: int = A | W, init: bool = True,
                leave: bool = True) -> Sec:  # fmt: skip
    """Return struct module with pointers to init and exit."""
    arch = by_machine(machine)
    assert arch is not None
    known = arch.loads.layouts
    relas = [
        Rela(known.offset_of("module", "init"), facts(machine).link.abs64, "init_module")
    ] * init
    relas += [
        Rela(known.offset_of("module", "exit"), facts(machine).link.abs64, "cleanup_module")
    ] * leave
    return Sec(
        THIS, bytes(known.size_of("module") if size is None else size), flags, align=64, relas=relas
    )


def tables(
    machine: int, offers: Sequence[Offer], *, flagged: bool = False
) -> tuple[list[Sec], list[Sym]]:
    """Return the export tables, with CRCs beside them where an offer has one.

    Parameters
    ----------
    flagged
        Which are GPL-only stands in `__kflagstab`, and all are in one table.
    """
    width = facts(machine).link.export_word
    kind = facts(machine).link.abs64 if width == 8 else facts(machine).link.prel32
    strings, found, symbols = b"\0", [], []
    for suffix, gpl in (("", False), ("_gpl", True)):
        chosen = [o for o in offers if flagged or o.gpl == gpl]
        if not chosen or (flagged and gpl):
            continue
        relas = []
        for number, offer in enumerate(chosen):
            at = 3 * width * number
            for field, text in ((1, offer.name), (2, offer.space)):
                label = f"{text}.{field}{suffix}{number}"
                symbols.append(
                    Sym(label, "__ksymtab_strings", len(strings) if text else 0, bind=LOCAL)
                )
                strings += text.encode() + b"\0" if text else b""
                relas.append(Rela(at + field * width, kind, label))
            relas.append(Rela(at, kind, offer.name))
        found.append(
            Sec(f"__ksymtab{suffix}", bytes(3 * width * len(chosen)), A, align=width, relas=relas)
        )
        if all(o.crc is not None for o in chosen):
            crcs = b"".join((o.crc or 0).to_bytes(4, "little") for o in chosen)
            found.append(Sec(f"__kcrctab{suffix}", crcs, A, align=4))
    if flagged:
        found.append(Sec("__kflagstab", bytes(o.gpl for o in offers), A))
    return [*found, Sec("__ksymtab_strings", strings, A)], symbols


def made(
    machine: int,
    name: str = "one",
    *,
    magic: str | None = "",
    licence: str | None = "GPL",
    tags: Sequence[str] = ("intree=Y",),
    uses: Sequence[str] = (),
    weak: Sequence[str] = (),
    offers: Sequence[Offer] = (),
    flagged: bool = False,
    extra: Sequence[Sec] = (),
    symbols: Sequence[Sym] = (),
    this: Sequence[Sec] | None = None,
    plt: bool = True,
    info: int = 1,
    sign: bool = True,
) -> bytes:
    """Return a module that a kernel lets in, but for what is asked for.

    Parameters
    ----------
    magic
        Its version magic: the modelled kernel's by default, None for none.
    licence
        None for none.
    tags
        What else `.modinfo` has.
    uses, weak
        Undefined names that it calls, and that a pointer holds.
    offers, flagged
        What it exports, as `tables` takes it.
    this
        Its struct module.
    plt
        Whether the arm64 placeholders are there.
    info
        How many `.modinfo` there are.
    sign
        Append a signature.
    """
    depends = f"name={name}"
    known = [depends, *tags]
    known += [f"license={licence}"] if licence is not None else []
    known += [f"vermagic={magic or debian(machine)}"] if magic is not None else []
    code, relas = calls(machine, *uses)
    begin = len(code) + -len(code) % 16
    body = (
        code.ljust(begin, b"\0")
        + facts(machine).link.return_0.ljust(16, b"\0")
        + facts(machine).link.return_0
    )
    sections = [
        Sec(".text", body, A | X, align=16, relas=relas),
        *[Sec(".modinfo", b"".join(t.encode() + b"\0" for t in known), A)] * info,
        *([this_module(machine)] if this is None else this),
        Sec(".data", bytes(8 * len(weak)), A | W, align=8,
            relas=[Rela(8 * n, facts(machine).link.abs64, w) for n, w in enumerate(weak)]),
    ]  # fmt: skip
    table = [
        Sym("init_module", ".text", begin, 4, FUNC),
        Sym("cleanup_module", ".text", begin + 16, 4, FUNC),
        *(Sym(n) for n in dict.fromkeys(uses)),
        *(Sym(n, bind=WEAK) for n in weak),
        *(Sym(o.name, ".text", begin, 4, FUNC) for o in offers),
    ]
    if offers:
        more, names = tables(machine, offers, flagged=flagged)
        sections += more
        table += names
    if plt:
        for section, executable in facts(machine).link.placeholders[:2]:
            sections.append(Sec(section, b"\0", A | X if executable else A))
    image = write(machine, [*sections, *extra], [*table, *symbols])
    return signed(image) if sign else image
