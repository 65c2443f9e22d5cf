# SPDX-License-Identifier: GPL-2.0-or-later
"""Tasks of the lessons about reach and stubs: what an answer is worth, from addresses and manuals."""

from __future__ import annotations

import random
import re
from itertools import combinations

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection

from archs import arch as arch_by_name
from samples.course.tasks import TASKS
from samples.modules import path
from tests.samples.test_course import failing, grade

# Numbers of types (psABIs) that count from their place; that hold bits which 2 MiB do not change.
RELATIVE = {
    "x86_64": {2, 4},  # PC32, PLT32
    "arm64": {275, 282, 283},  # ADR_PREL_PG_HI21, JUMP26, CALL26
    "riscv64": {16, 17, 18, 19, 23, 44, 45},  # BRANCH, JAL, CALL, CALL_PLT, PCREL_HI20, RVC_*
    "mips64el": set(),
}
LOWEST = {
    "x86_64": set(),
    "arm64": {277, 286},  # ADD_ABS_LO12_NC, LDST64_ABS_LO12_NC
    "riscv64": {24, 25, 51},  # PCREL_LO12_*, RELAX
    "mips64el": {6},  # LO16
}


def moved_places(arch):
    """Yield each place of the sample that is loaded, and whether other bytes stand there, by pyelftools."""

    def kind(elf, symbol):
        """Return which part of a module's a symbol is in; None: of none, so it is the kernel's."""
        if isinstance(symbol["st_shndx"], str):
            return None
        section = elf.get_section(symbol["st_shndx"])
        return "text" if section["sh_flags"] & 4 else "rest"

    other, file = (path(arch, name).open("rb") for name in ("mathlib", "mathuser"))
    with other, file:
        lib, elf = ELFFile(other), ELFFile(file)
        exported = {
            each.name: kind(lib, each) for each in lib.get_section_by_name(".symtab").iter_symbols()
        }
        for table in elf.iter_sections():
            if not isinstance(table, RelocationSection):
                continue
            section = elf.get_section(table["sh_info"])
            if not section["sh_flags"] & 2:
                continue
            here = "text" if section["sh_flags"] & 4 else "rest"
            symbols = elf.get_section(table["sh_link"])
            for each in table.iter_relocations():
                symbol = symbols.get_symbol(each["r_info_sym"])
                number = each["r_info_type"] if arch != "mips64el" else each["r_type"]
                there = kind(elf, symbol) or exported.get(symbol.name)
                changes = there != here if number in RELATIVE[arch] else there is not None
                changes &= number not in LOWEST[arch]
                yield f"{section.name}+{each['r_offset']:#x}", changes


def test_elsewhere_is_told_from_the_file(arch):
    """What changes is what types and symbols of the file say; each wrong place is counted."""
    found = {}
    for place, changes in moved_places(arch.name):
        found[place] = found.get(place, False) or changes
    changed = [place for place, changes in found.items() if changes]
    assert grade("elsewhere", arch.name, changed=changed).passed
    chance = random.Random(15)
    for _ in range(20):
        wrong = set(chance.sample(sorted(found), chance.randrange(1, 5)))
        verdict = grade("elsewhere", arch.name, changed=sorted(wrong ^ set(changed)))
        assert (verdict.passed, verdict.score) == (False, len(wrong))
        assert verdict.checks[0].passed is (not wrong - set(changed))
        assert verdict.checks[1].passed is (not wrong & set(changed))


def test_same_bytes_leave_each_adrp_in_its_page():
    """Passes where data moves by whole pages, and each ADRP by as many page boundaries; none is nearer."""
    text = TASKS["same-bytes"].file(arch_by_name("arm64"))
    places = [int(each, 16) for each in re.findall(r"adrp at (0x\w+),", text)]
    start = int(re.search(r"Code at (0x\w+)", text)[1], 16)
    taken = int(re.search(r"below (0x\w+)", text)[1], 16) - start

    def pages(code):
        return [(place + code) // 4096 - place // 4096 for place in places]

    passing = [code for code in range(taken, 0xD000, 4) if len(set(pages(code))) == 1]
    best = min(code + 4096 * pages(code)[0] for code in passing)
    assert TASKS["same-bytes"].best == {"arm64": best}
    chance, passed = random.Random(12), 0
    answers = [(min(passing), 4096 * pages(min(passing))[0]), (0, 0), (min(passing) - 4, 0x3000)]
    answers += [(code, 4096 * pages(code)[0] + chance.choice((0, 8))) for code in passing[::999]]
    for code, data in answers:
        verdict = grade("same-bytes", "arm64", code=code, data=data)
        moved = [4096 * each == data for each in pages(code)]
        assert [check.passed for check in verdict.checks] == [code >= taken, *moved]
        assert [int(check.found, 16) for check in verdict.checks[1:]] == [
            4096 * each for each in pages(code)
        ]
        assert verdict.score == code + data
        passed += verdict.passed
    assert 1 < passed < len(answers)
    assert failing(grade("same-bytes", "arm64", code=0, data=0)) == {"code moves by"}


@pytest.mark.parametrize("arch", TASKS["one-upper"].best)
def test_one_upper_adds_a_lower_part_with_its_sign(arch):
    """What is formed is upper part plus signed lower part, as the manuals say; no lower address passes."""
    text = TASKS["one-upper"].file(arch_by_name(arch))
    bits = int(re.search(r"lowest (\d+) bits", text)[1])
    least = int(re.search(r'(?m)^address = "(0x\w+)"', text)[1], 16)
    stands = re.search(r"from\s(?:#\s)?(0x\w+), where it", text)
    origin = int(stands[1], 16) if stands else 0  # AUIPC adds to its address, LUI to nothing
    fields = [int(each, 16) for each in re.findall(r"\+(0x\w+)", text)]
    assert (bits, bool(origin)) == {"riscv64": (12, True), "mips64el": (16, False)}[arch]

    def formed(upper, address):
        upper = (upper << bits ^ 1 << 31) - (1 << 31)
        lower = ((address - origin) % (1 << bits) ^ 1 << bits - 1) - (1 << bits - 1)
        return (origin + upper + lower) % (1 << 64)

    def right(upper, address):
        return [formed(upper, address + field) == address + field for field in fields]

    uppers = range(1 << 32 - bits)
    middle = (least - origin) % (1 << 32) >> bits
    near = [u for u in range(middle - 2, middle + 4) if u in uppers]
    best = next(at for at in range(least, least + 4096, 8) if any(all(right(u, at)) for u in near))
    assert TASKS["one-upper"].best[arch] == best - least
    chance, passed = random.Random(13), 0
    for address in (least - 8, best - 8, best, best + chance.randrange(1, 4000) * 8):
        for upper in (middle + (address >= best), chance.choice(uppers)):
            verdict = grade("one-upper", arch, address=address, upper=upper)
            low, *rest = verdict.checks
            assert low.passed is (address >= least)
            assert [check.passed for check in rest] == right(upper, address)
            for check, field in zip(rest, fields, strict=True):
                assert int(check.found.split(",")[0], 16) == formed(upper, address + field)
            passed += verdict.passed
    assert passed


def test_own_entries_live_as_long_as_calls():
    """Passes where core has an entry for each call that stays, and some PLT one for each other."""
    text = TASKS["own-entries"].file(arch_by_name("arm64"))
    calls = re.findall(r"(?m)^#   \w+ +in (\.\S+) +calls (\w+)$", text)
    names = sorted({callee for _, callee in calls})
    assert len(calls) == 7

    def right(core, init):
        return [name in core or (name in init and lies == ".init.text") for lies, name in calls]

    subsets = [list(each) for size in range(5) for each in combinations(names, size)]
    best = min(len(core) for core in subsets if all(right(core, names)))
    assert TASKS["own-entries"].best == {"arm64": best}
    chance, passed = random.Random(14), 0
    for core in subsets:
        for init in (names, chance.choice(subsets)):
            verdict = grade("own-entries", "arm64", core=core, init=init)
            assert [check.passed for check in verdict.checks] == right(core, init)
            assert verdict.score == len(core)
            for check, (_, name) in zip(verdict.checks, calls, strict=True):
                if not check.passed:
                    freed = name in init
                    assert ("trap" in check.found) is freed
                    assert ("does not reach" in check.found) is not freed
            passed += verdict.passed
    assert 0 < passed < len(subsets)
    twice = grade("own-entries", "arm64", core=[*names, names[0]], init=[])
    assert (twice.passed, twice.score) == (True, len(names) + 1)
