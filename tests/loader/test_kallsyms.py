# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's copies of symbol tables, counted."""

from __future__ import annotations

from pathlib import Path

import archs
from allocator.types import PAGE_SIZE, MemType, align_up
from execmem.check.elfwriter import ABS, LOCAL, SECTION, A, Sec, Sym, W, X, write
from loader.elf import parse
from loader.kallsyms import sizes_with_symbols
from loader.layout import plan
from tests.support.recordings import of_base


def test_named_symbols_of_what_stays_are_kept(arch: archs.Arch) -> None:
    """Core symbols cost 24 bytes, a type byte and their name; unnamed and init ones are left out."""
    image = write(
        arch.machine,
        [
            Sec(".text", bytes(8), A | X),
            Sec(".data", bytes(13), A | W),
            Sec(".data..percpu", bytes(4), A | W),
            Sec(".init.text", bytes(4), A | X),
            Sec(".init.data", bytes(3), A | W),
            Sec(".comment", b"gcc"),
        ],
        [
            Sym(".text", ".text", type=SECTION, bind=LOCAL),
            Sym("core", ".text"),
            Sym("twice", ".data", bind=LOCAL),
            Sym("twice", ".data", 4),
            Sym("counter", ".data..percpu"),
            Sym("start", ".init.text"),
            Sym("note", ".comment"),
            Sym("number", ABS, 7),
            Sym("elsewhere"),
        ],
    )
    view = parse(image)
    layout = plan(view)
    kept = ["", "core", "twice", "twice", "counter"]
    data = align_up(13, 8) + sum(24 + 1 + len(name) + 1 for name in kept)
    strings = view.symbol_names.size
    init = align_up(3, 8) + 24 * 10 + strings
    init = align_up(init, 8) + 4 * 8 + 10
    sizes = sizes_with_symbols(view, layout)
    assert (sizes[MemType.DATA], sizes[MemType.INIT_DATA]) == (data, init)
    assert sizes[MemType.TEXT] == layout.sizes[MemType.TEXT]


def test_sizes_equal_the_kernels(oracle: Path, corpus: Path) -> None:
    """Every region of every recorded module has the kernel's number of pages."""
    seen = 0
    for recorded in of_base(oracle, corpus):
        view = parse(recorded.image)
        sizes = sizes_with_symbols(view, plan(view, errata=recorded.errata))
        pages = {kind: align_up(size, PAGE_SIZE) for kind, size in sizes.items() if size}
        wanted = {kind: size for kind, (_, size) in recorded.recording.regions.items() if size}
        assert pages == wanted, recorded.name
        seen += 1
    assert seen > 40
