# SPDX-License-Identifier: GPL-2.0-or-later
"""Entries that code in their address how many they are: read as the specification reads them."""

from __future__ import annotations

import random

import numpy as np
import pytest

import archs
from emulator.noted import Walk
from emulator.paging import Own, Tables

PAGE = 1 << 12
CODED = [arch for arch in archs.ALL if arch.boot is not None and arch.boot.tables.coded]
START = 0x8000_0000  # of memory
ROOT, MIDDLE, LAST, DATA = (START + number * PAGE for number in (0, 1, 2, 64))
BASE = (1 << 64) - (1 << 38)  # where the kernel's half begins, with 39 bits


def expected(entry: int, number: int) -> int:
    """Return where an entry of the last level leads (RISC-V Privileged, 12.5), in plain numbers."""
    ppn = entry >> 10 & (1 << 44) - 1
    if not entry >> 63:
        return ppn << 12
    assert ppn & 0xF == 0b1000  # ppn[0] = xxxx xxxx 1000: 64 KiB
    return (ppn & ~0xF | number & 0xF) << 12


@pytest.fixture(params=CODED, ids=lambda arch: arch.name)
def made(request):
    """Return tables of runs and pages, what each page of addresses leads to, and their memory."""
    form = request.param.boot.tables
    chance = random.Random("runs")
    memory = np.zeros(DATA - START >> 3, np.uint64)
    memory[(ROOT - START >> 3) + 256] = np.uint64(MIDDLE >> 2 | 1)
    memory[MIDDLE - START >> 3] = np.uint64(LAST >> 2 | 1)
    leads = {}
    for row in range(32):
        kind = chance.choice(("run", "run", "pages", "none"))
        frame = (DATA >> 12) + 16 * chance.randrange(64)
        for index in range(16 * row, 16 * row + 16):
            if kind == "none" or (kind == "pages" and chance.random() < 0.5):
                continue
            ppn = frame | 8 if kind == "run" else frame + chance.randrange(16)
            entry = (kind == "run") << 63 | ppn << 10 | 0xCF
            memory[(LAST - START >> 3) + index] = np.uint64(entry)
            leads[BASE + index * PAGE] = expected(entry, index)

    def words(at: int, count: int):
        first = at - START >> 3
        return memory[first : first + count] if 0 <= first < len(memory) else None

    return Tables(format=form, root=ROOT, bits=39, granule=12), words, leads


def test_every_page_of_a_run_leads_to_its_own_frame(made):
    """One address at a time, and all of them at once."""
    tables, words, leads = made
    for at in range(BASE, BASE + 512 * PAGE, PAGE):
        found = tables.walk(at + 5, words, lambda _at: True)
        assert found == (leads[at] + 5 if at in leads else None)
    seen = {
        run.address + offset: run.physical + offset
        for run in tables.runs(words)
        for offset in range(0, run.size, PAGE)
    }
    assert seen == leads


def test_a_dump_prints_where_a_run_begins(made):
    """The physical address of a line is that of its first page."""
    tables, words, leads = made
    for part in Walk(tables, words).all():
        for start, depth, kept, to in zip(
            part.starts.tolist(),
            part.depths.tolist(),
            part.kept.tolist(),
            part.physical.tolist(),
            strict=True,
        ):
            if depth == 0 and kept & 1:
                assert leads[start] == to


def test_what_a_dump_lacks_is_taken_out_of_runs(made):
    """Our own tables have no run: the rest of one whose first page is missing stays mapped."""
    tables, words, leads = made
    missing = (min(leads.values()) - START) // PAGE
    there = np.ones(4096, bool)
    there[missing] = False
    room = 256 * PAGE
    extra = np.zeros(room >> 3, np.uint64)

    def both(at: int, count: int):
        first = at - START - (1 << 24) >> 3
        return extra[first : first + count] if first >= 0 else words(at, count)

    begin = START + (1 << 24)
    own = Own(tables, both, there, START, (begin, begin + room)).tables()
    for at, to in leads.items():
        found = own.walk(at, both, lambda _at: True)
        assert found == (None if to == START + missing * PAGE else to)
        entry = own.entry(both, at)
        assert entry is None or not entry >> 63
