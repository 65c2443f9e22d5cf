# SPDX-License-Identifier: GPL-2.0-or-later
"""The lessons: short, as printed in the golden texts, and every number computed elsewhere too."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

import lz4.block
import pytest
from elftools.elf.constants import SH_FLAGS

import samples
from allocator.types import GIB, MIB, PAGE_SIZE
from archs import ALL
from archs import arch as arch_by_name
from emulator.faults import FaultKind
from execmem.cli import main
from execmem.picture import slide
from loader.elf import parse
from loader.layout import plan
from machine.machine import ModelledMachine
from machine.racing.loading import loading
from machine.racing.state import FlushText, Protect
from samples import (
    DEMOS,
    adrp,
    fit,
    fuzz_lz4,
    fuzz_match,
    fuzz_report,
    jump,
    reach,
    story_of,
    tour,
    trees,
)
from samples.course import CHAPTERS, LESSONS, pictures
from samples.jump import ARGUMENTS
from samples.modules import names, path, root
from samples.story import Grid
from tests.archs import facts as known
from tests.execmem.test_documents import check, documents
from tests.samples.test_modules import elf, relocations, section
from tests.support.lessons import prose, told

DOCS = Path(__file__).parents[2] / "docs"
GOLDEN = Path(__file__).parents[1] / "data" / "lessons"


@pytest.fixture(autouse=True)
def _once(monkeypatch):
    """Let the command tell what a lesson told before."""
    monkeypatch.setattr(samples, "story_of", told)


@pytest.mark.parametrize("name", DEMOS)
def test_lesson_is_short_and_tells_its_prose(name, capsys):
    """A lesson has at most 150 lines of source, 80 columns, and the words that a lecturer prepared.

    Its numbers are facts, which the tests below compute otherwise. `python -m
    tests.samples.test_demos` makes the texts anew.
    """
    source = Path(samples.__file__).parent / f"{name.replace('-', '_')}.py"
    assert len(source.read_text("utf-8").splitlines()) <= 150
    with pytest.raises(SystemExit) as ended:
        main(["demo", name])
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    placed = LESSONS[name]
    assert printed.startswith(f"{placed.number}  ")
    number = [line.startswith("Try next: execmem ") for line in printed.splitlines()].index(True)
    first, *more = printed.splitlines()[number:]  # whole, each on a line, to be copied
    assert (first.removeprefix("Try next: "), *map(str.strip, more)) == placed.commands()
    assert prose(printed) == (GOLDEN / f"{name}.txt").read_text("utf-8")


@pytest.mark.parametrize("name", DEMOS)
def test_lesson_has_facts(name, capsys):
    """A lesson's numbers are there for programs, as documented."""
    story = told(name)
    assert story.name == name
    assert story.title
    assert story.facts
    (found,) = documents(capsys, "demo", name, "--json")
    check("demo NAME", found)
    assert (found["name"], found["title"]) == (name, story.title)


@pytest.mark.parametrize("name", DEMOS)
def test_lesson_has_a_picture(name):
    """It is well formed, within the slide, in words, too; the committed one tells the same."""
    text = slide(told(name))
    found = ET.fromstring(text)
    _, _, width, height = map(int, found.get("viewBox").split())
    words = " ".join(found.itertext())
    for shape in found:
        for key, end in (("x", width), ("y", height)):
            assert 0 <= float(shape.get(key, 0)) <= end
        if "width" in shape.attrib:
            assert float(shape.get("x")) + float(shape.get("width")) <= width
    lesson = LESSONS[name].lesson
    assert lesson.question in words
    assert lesson.idea in words
    assert prose(text) == prose((DOCS / "pictures" / f"{name}.svg").read_text("utf-8"))


def test_pictures_show_the_numbers():
    """Bars are as long as the numbers are, on their scale, and the marks say which are good."""
    found = pictures.picture("fit", told("fit").facts)
    assert found.limit[0] == told("fit").facts["room"]
    for bar in found.bars:
        assert bar.value == told("fit").facts[bar.label]["total"]
        assert (bar.tone is pictures.Tone.GOOD) is (bar.value <= found.limit[0])
    drawn = ET.fromstring(slide(told("fit")))
    wide = [float(e.get("width")) for e in drawn if e.tag.endswith("rect")]
    longest = max(bar.value for bar in found.bars)
    for bar, width in zip(found.bars, wide, strict=True):
        assert abs(width / max(wide) - bar.value / longest) < 0.001
    other = pictures.picture("nonesuch", {}, ("a", "b"), (("1", "2"),))
    assert other.heads == ("b",)
    assert other.rows[0][1][0].text == "2"


def test_the_course_is_whole():
    """Every lesson has a question and an idea of one sentence, a page to read, and one to follow."""
    assert len(CHAPTERS) == 4
    for number, chapter in enumerate(CHAPTERS, 1):
        assert chapter.about.endswith(".")
        for place, lesson in enumerate(chapter.lessons, 1):
            assert LESSONS[lesson.name].number == f"{number}.{place}"
            assert samples.named(f"{number}.{place}") == samples.named(lesson.name) == lesson.name
            assert lesson.question.endswith("?")
            assert lesson.idea.endswith(".")
            assert (DOCS / lesson.read).is_file()
    following = [placed.following for placed in LESSONS.values()]
    assert following == [*list(LESSONS)[1:], None]
    files = {path.stem for path in Path(samples.__file__).parent.glob("*.py")}
    assert {name.replace("-", "_") for name in LESSONS} == files - {
        "__init__",
        "bench",
        "hostile",
        "jump",
        "searching",
        "story",
    }


def test_unknown_demo():
    """An unknown name is refused."""
    with pytest.raises(KeyError):
        story_of("nonesuch")


def test_tour_results():
    """The tour's result is Python's, on every architecture."""
    for facts in told("tour").facts.values():
        assert facts["result"] == facts["expected"] == math.lcm(*tour.ARGUMENTS)


def test_tour_counts_what_the_file_holds(arch):
    """Relocations of allocated sections, by type, are those that pyelftools reads."""
    file = elf(arch.name, "mathuser")
    tables = [
        s.name.removeprefix(".rela") for s in file.iter_sections() if s["sh_type"] == "SHT_RELA"
    ]
    allocated = [t for t in tables if section(file, t)["sh_flags"] & SH_FLAGS.SHF_ALLOC]
    counted = Counter(kind for t in allocated for _, kind, *_ in relocations(file, t))
    assert told("tour").facts[arch.name]["relocations"] == counted


def in_bytes(text):
    """Return the least and the greatest number that a size with two digits may stand for."""
    number, unit = text.split()
    factor = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}[unit]
    return (float(number) - 0.005) * factor, (float(number) + 0.005) * factor


KINDS = {  # of a section: whether it is there for init, can be executed, can be written
    "text": (False, True, False),
    "init_text": (True, True, False),
    "rodata": (False, False, False),
    "data": (False, False, True),
}


def test_tour_shows_sizes_and_distances(arch):
    """Sizes are those of the sections that pyelftools reads; distances those of the addresses."""
    base = known.facts(arch).load.image_base
    grids = [part for part in told("tour").parts if isinstance(part, Grid)]
    places = [g.rows for g in grids if g.columns[0] == "address"][ALL.index(arch)]
    shown = {what: (int(at, 16), size, distance) for at, size, what, distance in places}
    assert shown["kernel image"][0] == base
    for at, _, distance in shown.values():
        low, high = in_bytes(distance) if distance != "0" else (0, 0)
        assert low <= at - base <= high
    for name in ("mathlib", "mathuser"):
        for kind, wanted in KINDS.items():
            found = [
                (one["sh_size"], one["sh_addralign"] - 1)
                for one in elf(arch.name, name).iter_sections()
                if one["sh_flags"] & SH_FLAGS.SHF_ALLOC
                and one.name not in (".modinfo", "__versions")
                if (
                    one.name.startswith(".init"),
                    bool(one["sh_flags"] & SH_FLAGS.SHF_EXECINSTR),
                    bool(one["sh_flags"] & SH_FLAGS.SHF_WRITE),
                )
                == wanted
            ]
            if arch.plt is not None and wanted[1]:  # at most an entry for each branch
                text = ".init.text" if wanted[0] else ".text"
                count = len(list(relocations(elf(arch.name, name), text)))
                found.append((0, arch.plt.align + arch.plt.size * count))
            low, high = in_bytes(shown[f"{name} {kind}"][1])
            assert low <= sum(size + padding for size, padding in found), (name, kind)
            assert high >= sum(size for size, _ in found), (name, kind)


def test_reach_tells_what_the_record_says(arch):
    """One step past the limit a call is refused, or goes through an entry of the module's PLT."""
    call = arch.link.call
    if call is None:
        (row,) = (row for row in told("reach").parts[1].rows if row[0] == arch.title)
        assert row[1:] == ("any: through registers", "", "")
        return
    facts = reach.visit(arch)
    # The relocation counts from its field; the instruction may start earlier.
    assert abs(int(facts["fits"], 16) + call.reach.align - call.reach.hi) < 8
    layout = plan(parse(path(arch.name, reach.MODULE).read_bytes()))
    assert ("PLT" in facts["beyond"]) is bool(layout.plt)


def test_veneer_wall_is_where_26_bits_end():
    """BL's bytes are 0x94000000 with the distance in words; from 2^27 on an entry is used."""
    for _, x, code, entries in told("veneer").facts["rows"]:
        distance = int(x, 16)
        word = int.from_bytes(bytes.fromhex(code), "little")
        if distance < 1 << 27:
            assert word == 0x94000000 | distance >> 2
            assert entries == "0"
        else:
            assert word >> 26 == 0x25
            assert entries == "1"


def test_hi20_forms_what_the_sum_says():
    """With the 0x800 the pair forms the distance; without, 0x1000 less when bit 11 is set."""
    for wanted, low, right, wrong, _ in told("hi20").facts["rows"]:
        distance = int(wanted, 16)
        assert int(low, 16) == distance % 0x1000
        assert int(right, 16) == distance
        assert int(wrong, 16) == distance - (0x1000 if distance & 0x800 else 0)


def test_adrp_follows_whole_pages_only():
    """The copied pair leads to the target plus the pages that its own page moved."""
    for moved, inside, wanted, got, verdict in told("adrp").facts["rows"]:
        at = adrp.START + int(moved, 16)
        assert int(inside, 16) == at % 0x1000
        assert int(got, 16) == adrp.TARGET + at // 0x1000 * 0x1000
        assert (verdict == "right") is (wanted == got)


def test_auipc_straddles_and_is_poked():
    """The instruction begins two bytes before a page ends, and both versions run."""
    facts = told("auipc").facts
    assert facts["place"] % PAGE_SIZE == PAGE_SIZE - 2
    assert facts["results"] == [7, 9]
    assert facts["pages"] == 2


def test_model_breaks_below_the_top_two_gib():
    """2^64 - 2^31 is the lowest address that 32 bits hold, sign-extended."""
    rows = told("model").facts["rows"]
    for _, address, refused, types in rows:
        top = int(address, 16) >= (1 << 64) - 2 * GIB
        assert (refused == "0") is top
        assert top or "R_X86_64_32S" in types


def test_vmalloc_else_is_refused_wherever_it_is_far():
    """Beyond every reach the module is refused; on top of the kernel it loads."""
    facts = told("vmalloc_else").facts
    assert len(facts) == 2 * len(ALL)
    registers = {arch.title for arch in ALL if arch.link.call is None}
    for name, found in facts.items():
        far = found["away"] > 4 * GIB and name.partition(",")[0] not in registers
        assert (found["refused"] > 0) is far


def test_flow_ends_the_same_with_and_without_text_poke():
    """Same bytes, same last protection; only text_poke starts executable."""
    for name, facts in told("flow").facts.items():
        assert facts["bytes"] == facts["wanted"]
        assert facts["protections"][-1] == "R-X"
        assert facts["protections"][0] == ("R-X" if name.endswith("poke") else "RW-")
        assert bool(facts["pokes"]) is name.endswith("poke")
        assert facts["late write"] == "LifecycleError"


def test_rox_counts_leaves():
    """A 2 MiB leaf is 512 small ones when it is split; who pokes never splits it."""
    facts = told("rox").facts
    assert facts["rox_cache"]["leaves"] == [(512, 0), (512, 0), (0, 1)]
    assert facts["rox_cache"]["splits"] == facts["rox_cache"]["collapses"] == 1
    for name in ("rox_cache_613", "strata"):
        assert facts[name]["leaves"] == [(0, 1)] * 3
    assert all(large == 0 for _, large in facts["vmalloc"]["leaves"])
    assert facts["strata"]["flushes"] < facts["rox_cache"]["flushes"]


def test_holes_add_up():
    """Span = text + holes; strata's holes are smaller than a cache line, a page's are not."""
    facts = told("holes").facts
    sections = [one for name in names() for one in elf("x86_64", name).iter_sections()]
    code = [one for one in sections if one["sh_flags"] & SH_FLAGS.SHF_EXECINSTR]
    code = [one for one in code if not one.name.startswith(".init")]
    text, most = sum(one["sh_size"] for one in code), sum(one["sh_addralign"] - 1 for one in code)
    for found in facts.values():
        assert found["modules"] == len(names())
        assert text <= found["text"] <= text + most  # sections are aligned
        assert found["span"] - found["text"] <= found["holes"] * found["largest"]
    assert facts["strata"]["largest"] < 64
    assert facts["rox_cache"]["largest"] < PAGE_SIZE
    assert facts["vmalloc"]["largest"] > PAGE_SIZE


def test_after_init_seals():
    """The store works before init and faults after it, and the value stays."""
    for facts in told("after_init").facts.values():
        assert facts["before"] == ("RW-", "7 is there")
        assert facts["after"] == ("R--", "faults")
        assert facts["kept"]


def test_initplt_ends_in_a_trap():
    """The entry works while init text lives; afterwards its bytes are traps."""
    facts = told("initplt").facts
    assert facts["before"] == 7
    assert facts["fault"].startswith("trap")
    assert bytes.fromhex(facts["there"]) == bytes.fromhex(facts["trap"]) * 3


def test_nomodules_lands_in_the_range_of_each_consumer(arch):
    """Every consumer gets memory under a large leaf; ftrace and thunks reach the kernel."""
    facts = told("nomodules").facts[arch.name]
    here = arch.loads.address_map()
    for found in facts.values():
        assert found["leaf"] == 2 << 20
        call = arch.link.call
        ends = (here.image.start, here.image.end - 4)
        assert found["reaches"] is (
            call is None or all(e - found["address"] in call.reach for e in ends)
        )
    assert facts["ftrace"]["reaches"]
    assert facts["thunk"]["reaches"]


def test_trees_have_large_leaves_and_vmalloc_has_none():
    """Each large leaf stands for at most 512 small ones of vmalloc."""
    facts = told("trees").facts
    small, large = facts["vmalloc"]["text"]
    assert large == 0
    for name in trees.DESIGNS[1:]:
        assert facts[name]["modules"] == facts["vmalloc"]["modules"]
        few, many = facts[name]["text"]
        assert few + 512 * many >= small / 2
        assert few == 0
    assert facts["strata"]["splits"] == 1


def test_guard_finds_each_mistake():
    """What is found is what the parser's source says is wrong, in its order; without, little is."""
    facts = told("guard").facts
    found = [each["found"] for each in facts.values()]
    behind = "out-of-bounds access"
    assert found[:5] == [behind, behind, "use after free", "double free", behind]
    assert found[5:] == ["lock imbalance", "leak"]
    seen = [each["plain"] for each in facts.values()]
    assert [each for each in seen if not each.endswith(" records")] == ["panic"]  # kfree twice


def test_fit_agrees_with_what_was_measured_before():
    """Counted apart from this project: 1,755 and 2,332 (first fit), 3,709, all, all."""
    facts = told("fit").facts
    found = [facts[name]["fit"] for name, *_ in fit.RULES]
    assert found[2:] == [3709, 4350, 4350]
    assert abs(found[0] - 1755) <= 3
    assert abs(found[1] - 2332) <= 3
    mib, count = known.facts("arm64").load.debian[1], known.facts("arm64").load.debian[0]
    assert mib - 0.005 <= facts["text only, 64 bytes"]["total"] / MIB <= mib + 64 * count / MIB
    here = arch_by_name("arm64").loads.address_map()
    assert facts["room"] == (128 << 20) - here.image.size


def test_poke_shows_what_each_step_is_for():
    """CPU 1 gets one function's result or the other's, but where a step is missing."""
    one, other = str(math.gcd(*jump.ARGUMENTS)), str(math.lcm(*jump.ARGUMENTS))
    for name, facts in told("poke").facts.items():
        assert (facts["before"], facts["poked"]) == (one, other)
        assert (facts["stale"], facts["synced"]) == (other, one)
        assert facts["alias"].startswith("write fault")
        assert facts["flush"].endswith("page before")
        assert facts["torn"] is bool(set(facts["pieces"]) - {one, other}), name
        assert set(facts["phases"].values()) <= {other, "no turn"}
        assert facts["phases"]["all written"] == other
    assert any(facts["torn"] for facts in told("poke").facts.values())


# Replayed bugs ---------------------------------------------------------------------------------


def test_bug_unsorted_misses_the_site_that_bsearch_misses():
    """The upper site traps as long as breakpoints may be met; in a sorted table nothing does."""
    facts = told("bug-unsorted").facts
    new = str(math.lcm(*ARGUMENTS))
    assert facts["sorted"]["before"] == (str(math.gcd(*ARGUMENTS)),) * 2
    assert set(facts["sorted"]["phases"].values()) == {(new, new)}
    *open_window, last = facts["queued and single"]["phases"].values()
    assert open_window == [(new, "trap")] * 2
    assert last == (new, new)
    assert facts["search"]["outcome"] == "stray"
    assert "meets the breakpoint" in facts["search"]["steps"][-2]


def test_bug_sync_ends_in_memory_that_is_nobodys():
    """Only without the last step CPU 1 goes the old way, and then where there is nothing."""
    facts = told("bug-sync").facts
    old, new = str(math.gcd(*ARGUMENTS)), str(math.lcm(*ARGUMENTS))
    assert set(facts) == {a.name for a in ALL if a.live_patch and a.live_patch.breakpoint is None}
    for found in facts.values():
        assert list(found["with"].values()) == [old, new, new]
        assert list(found["without"].values()) == [old, old, "trap"]
        assert found["search"]["outcome"] == "stale"


def test_bug_wx_finds_the_designs_that_turn_text_round_in_one_step():
    """A window is there where rights that are still in a TLB, taken together, are W and X."""
    for name, designs in told("bug-wx").facts.items():
        for design, found in designs.items():
            if design == "born RWX":
                assert found["outcome"] == "window"
                continue
            race = loading(arch_by_name(name), design).race
            now, window = race.rights, False
            held = {now}
            for op in race.programs[0]:
                if isinstance(op, Protect):
                    now = op.rights
                    held.add(now)
                elif isinstance(op, FlushText):
                    held = {now}
                window |= any("X" in one for one in held) and any("W" in one for one in held)
            assert (found["outcome"] == "window") == window, (name, design)
        assert designs["strata"]["outcome"] is None
        assert designs["strata"]["complete"]


def test_bug_rox613_reads_where_nothing_is_yet():
    """Read at the text the pass finds what the cache is filled with, and the call fails."""
    wrong, right, later = told("bug-rox613").facts.values()
    assert wrong["read"].split() == [arch_by_name("x86_64").loads.trap.hex()] * 6
    assert wrong["result"] == FaultKind.CFI.value
    assert (right["result"], later["result"]) == ("42", "42")
    assert (wrong["differ"], later["differ"]) == (2, 0)


# What a fuzzer finds ------------------------------------------------------------------------------


def test_fuzzed_formats_are_read_as_their_standards_say():
    """What is right is read as others read it: bits of a report, an option, what lz4 unpacks."""
    machine = ModelledMachine("arm64", root=root("arm64"))
    call = machine.load("formats").call
    mouse = bytes.fromhex(  # HID 1.11, E.10: three buttons and five bits of padding, two bytes
        "05010902a1010901a100050919012903150025019503750181029501750581010501093009311581257f750895028106c0c0"
    )
    assert call("formats_report", mouse, len(mouse), returns="int") == 3 + 5 + 2 * 8
    assert call("formats_report", fuzz_report.DESCRIPTOR, 10, returns="int") == 2 * 8
    packet = fuzz_match.PACKET
    found = {kind for kind in range(9) if call("formats_match", packet, len(packet), kind)}
    assert found == {1, 2, 3}
    packed = fuzz_lz4.PACKED
    size = len(lz4.block.decompress(packed, uncompressed_size=512))
    assert call("formats_unlz4", packed, len(packed), 512, returns="int") == size


def test_fuzz_lessons_find_the_check_that_is_missing():
    """A push too many, an option of no length, a copy that is longer than the room."""
    report, match, unlz4 = (
        told(f"fuzz-{name}").facts["search"] for name in ("report", "match", "lz4")
    )
    assert bytes.fromhex(report["smallest"]) == b"\xa4" * 3
    assert report["found"] == "out-of-bounds access in formats_report"
    packet = bytes.fromhex(match["smallest"])
    at = 40
    while packet[at] == 1 or packet[at + 1]:
        at += 1 if packet[at] < 2 else packet[at + 1]
    assert packet[at : at + 2] == bytes((packet[at], 0))
    assert match["found"] == "it does not end in formats_match"
    with pytest.raises(lz4.block.LZ4BlockError):
        lz4.block.decompress(bytes.fromhex(unlz4["input"]), uncompressed_size=fuzz_lz4.ROOM)
    assert unlz4["found"] == "out-of-bounds access in formats_unlz4"


if __name__ == "__main__":
    for each in DEMOS:
        told_by = subprocess.run(
            [sys.executable, "-m", "execmem", "demo", each],
            check=True,
            capture_output=True,
            text=True,
        )
        (GOLDEN / f"{each}.txt").write_text(prose(told_by.stdout), "utf-8")
