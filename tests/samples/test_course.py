# SPDX-License-Identifier: GPL-2.0-or-later
"""The course's tasks: solutions pass with the best score, wrong answers fail, and by the right numbers.

What an answer is worth is computed here a second time, number by number, from the addresses and
the manuals' encodings.
"""

from __future__ import annotations

import random
import re
from itertools import permutations, product
from pathlib import Path

import pytest

from allocator.designs import DESIGNS
from allocator.errors import ExecmemError
from allocator.types import PAGE_SIZE
from archs import ALL
from archs import arch as arch_by_name
from execmem.coursework import graded
from samples.course import LESSONS
from samples.course.task import Answer, AnswerError, read
from samples.course.tasks import (
    TASKS,
    by_hand,
    churn,
    fewest_flushes,
    first_refusal,
    missing_sync,
    one_plt,
    one_store,
    repair_else,
)
from samples.jump import Jump
from tests.support.lessons import told

SOLUTIONS = Path(__file__).parents[2] / "docs" / "solutions"
PAIRS = [(task.name, arch.name) for task in TASKS.values() for arch in task.archs]


def grade(task, arch, **values):
    """Return the verdict on an answer that says these values."""
    values = {key: str(each) if isinstance(each, int) else each for key, each in values.items()}
    return TASKS[task].grade(Answer("answer.toml", "", task, arch_by_name(arch), values))


def failing(verdict):
    """Return what of a verdict did not pass."""
    return {check.what for check in verdict.checks if not check.passed}


def solution(task, arch):
    """Return the text of a solution; those that are alike on all architectures are kept once."""
    files = sorted(SOLUTIONS.glob(f"{task}-*"))
    named = [file for file in files if file.stem == f"{task}-{arch}"]
    (file,) = named or files
    other = file.stem.removeprefix(f"{task}-")
    return file.read_text("utf-8").replace(f'arch = "{other}"', f'arch = "{arch}"')


def solved(task, arch, key):
    """Return what a solution says."""
    return read("x.toml", solution(task, arch))[2][key]


# Every task -------------------------------------------------------------------------------------


def test_every_task_belongs_to_a_lesson():
    """Each lesson's tasks exist, each task has one lesson, in its order, two in each chapter."""
    named = [name for placed in LESSONS.values() for name in placed.lesson.tasks]
    assert named == list(TASKS)
    chapters = [placed.chapter for placed in LESSONS.values() for _ in placed.lesson.tasks]
    assert len(TASKS) >= 8
    assert all(chapters.count(chapter) >= 2 for chapter in set(chapters))
    assert len(set(chapters)) == 4
    for path in SOLUTIONS.iterdir():
        assert any(path.stem == f"{task}-{arch}" for task, arch in PAIRS), path


def test_pages_name_every_task():
    """The course's page has a line for each lesson's task, in order; the lecturer's has a time for each."""
    docs = SOLUTIONS.parent
    lines = re.findall(
        r"(?m)^\| `([\w-]+)` \| `([\w-]+)`: .+ \| (.+) \|$", (docs / "course.md").read_text("utf-8")
    )
    named = {task: lesson for lesson, task, _ in lines}
    placed = LESSONS.items()
    assert list(named.items()) == [
        (task, name) for name, one in placed for task in one.lesson.tasks
    ]
    plan = (docs / "lecture.md").read_text("utf-8").partition("## Pictures")[0]
    assert [task for task in TASKS if f"`{task}`" not in plan] == []


# The design of the solution is the same for all: two of them say enough, in a suite that has to end.
@pytest.mark.parametrize(
    ("task", "arch"), [p for p in PAIRS if p[0] != "churn" or p[1] in ("x86_64", "arm64")]
)
def test_solutions_pass_and_templates_do_not(tmp_path, task, arch):
    """The solution passes; what `course new` writes fits 80 columns, and does not."""
    found = TASKS[task]
    file = tmp_path / f"answer{found.suffix}"
    file.write_text(solution(task, arch))
    verdict = graded(str(file))
    assert verdict["passed"], verdict
    assert (verdict["task"], verdict["arch"]) == (task, arch)
    assert verdict["score"] == verdict["best"] or task == "churn"
    template = found.file(arch_by_name(arch))
    assert max(map(len, template.splitlines())) <= 80
    file.write_text(template)
    verdict = graded(str(file))
    assert not verdict["passed"]
    wrong = [check for check in verdict["checks"] if not check["passed"]]
    assert wrong
    assert all(check["found"] != check["wanted"] for check in wrong)
    assert len(found.hints) >= 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no task"),
        ("task = 3", "names no task"),
        ("task = [", "no TOML"),
        ("[" * 5000, "no TOML"),
        ('task = "one-plt"\narch = 3', "expected the name of an architecture"),
        ('task = "one-plt"\narch = "vax"', "vax"),
        ('task = "one-plt"\narch = "x86_64"', "not for x86_64, but for arm64"),
        ('task = "one-pit"', "did you mean one-plt"),
        ('task = "one-plt"', "no move"),
        ('task = "one-plt"\nmove = "far"', "expected a number"),
        ('task = "one-plt"\nmove = true', "expected a number"),
        ('task = "one-plt"\nmove = 1e300', "expected a number"),
        ('task = "one-plt"\nmove = "0x10000000000000000"', "expected a number"),
        ('task = "one-plt"\nmove = 1', "no multiple of 0x1000"),
        ('task = "same-bytes"\ncode = 2\ndata = 0', "a multiple of 4 in [0x0, "),
        ('task = "one-upper"\naddress = 4\nupper = 0', "no multiple of 8"),
        ('task = "one-upper"\naddress = 8\nupper = 0x100000', "in [0x0, 0x100000)"),
        ('task = "own-entries"\ncore = ["printk"]\ninit = []', "did you mean _printk?"),
        ('task = "elsewhere"\nchanged = [".text+0x2e"]', "'.text+0x2e', which is no place"),
        ('task = "load-order"\nload = ["mathlb"]\nunload = []', "did you mean mathlib?"),
        ('task = "load-order"\nload = "mathlib"\nunload = []', "expected a list"),
        ('task = "by-hand"\nbytes = 3', "expected a text"),
        ('task = "by-hand"\nbytes = "0g"', "expected hex"),
        ('task = "byte-by-byte"\ninputs = [3]', "expected hex"),
        ('task = "byte-by-byte"\ninputs = ["0g"]', "expected hex"),
        (f'task = "byte-by-byte"\ninputs = ["{"00" * 65}"]', "one of 65 bytes"),
        ('task = "fewest-flushes"\nwrites = [3]', "expected two numbers"),
        ('task = "missing-sync"\nsteps = ["synk"]', "did you mean sync?"),
        ('task = "missing-sync"\nsteps = ["stop"]\narch = "mips64el"', "not for mips64el"),
        ('task = "when-to-free"\nsteps = ["free", "free"]', "free 2 times, at most once"),
        ('task = "when-to-free"\nsteps = ["sync 3"]', "there are store, sync 1"),
        ('task = "fewest-batches"\nafter = [0]', "there are requests 1 to 10"),
        ('task = "share-pages"\npages = ["A B", "B C"]', "they hold A B B C, wanted ABCDEFG"),
        ('task = "share-pages"\npages = ["\\u001b"]', "they hold \\x1b, wanted"),
        ('task = "four-users"\npools = ["\\u202e"]\nat = [0]', "they have \\u202e; wanted"),
        ('task = "side-by-side"\ntext = [0]\ninit = [0]', "text: 1 pages, wanted 4"),
        ('task = "side-by-side"\ntext = [0, 0, 0, 9]', "D at page 9; there are 0 to 8"),
        ('task = "four-users"\npools = ["bpf bpf"]\nat = [0]', "they have bpf, bpf; wanted each"),
        ('task = "never-both"\nsteps = ["write"]', "live 0 times, wanted once"),
        ('task = "two-addresses"\nwrites = ["poke", "peek"]', "expected a number"),
        ('task = "two-addresses"\nwrites = ["poke"]', "writes: 1, wanted 5"),
        ('task = "one-store"\njump = 1\nold = 0\nnew = 0', "a multiple of"),
        ('task = "window"\nnear = []\nunit = 65\nguard = 0', "a power of two"),
        ('task = "window"\nnear = []\nunit = 64\nguard = 1', "whole pages"),
    ],
)
def test_what_cannot_be_graded_is_one_line(tmp_path, text, said):
    """The file, the key, and what was expected there."""
    file = tmp_path / "answer.toml"
    file.write_text(text)
    refused = graded(str(file))["refused"]
    assert said in refused
    assert "\n" not in refused


def test_what_is_no_answer_is_one_line(tmp_path):
    """A folder, nothing, bytes that are no text, too much of it."""
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\0")
    (tmp_path / "long.toml").write_text("#" * (1 << 17))
    for name in ("", "missing.toml", "binary.toml", "long.toml"):
        assert "\n" not in graded(str(tmp_path / name))["refused"]
    with pytest.raises(AnswerError, match="at most"):
        read("long.toml", "#" * (1 << 17))
    with pytest.raises(ExecmemError, match="not for mips64el"):
        TASKS["one-store"].arch("mips64el")


# Reach ------------------------------------------------------------------------------------------


def entries(moves, by):
    """Return how many PLT entries a move of text takes: targets of BL further than 26 bits of words."""
    found = set()
    for one in range(moves.x.size):
        if moves.rows[int(moves.type[one])].name in ("R_AARCH64_CALL26", "R_AARCH64_JUMP26"):
            place, target = int(moves.place[one]) + by, int(moves.target[one])
            target += by if int(moves.moves[1][one]) == 1 else 0
            if not -(1 << 27) <= target - place < 1 << 27:
                init = any(
                    entry.visits.size and one in entry.visits
                    for i, entry in moves.entries.items()
                    if i
                )
                found.add((init, target))
    return len(found)


def test_one_plt_counts_entries_and_knows_the_nearest_place():
    """Entries are the targets beyond 2^27 bytes; no shorter move leaves exactly one."""
    moves = one_plt.motion("arm64")
    chance = random.Random(1)
    for by in [0, *(chance.randrange(-40_000, 40_000) * PAGE_SIZE for _ in range(40))]:
        verdict = grade("one-plt", "arm64", move=by)
        assert verdict.passed is (entries(moves, by) == 1)
        assert verdict.checks[1].found == str(entries(moves, by))
        assert verdict.score == abs(by) // PAGE_SIZE
    calls = [
        int(moves.x[one])
        for one in range(moves.x.size)
        if moves.rows[int(moves.type[one])].name == "R_AARCH64_CALL26"
    ]
    best = TASKS["one-plt"].best["arm64"]
    # All calls go up: text that moves down by less than the longest one lacks, loses none.
    longest = max(x if x < 1 << 63 else x - (1 << 64) for x in calls)
    assert best == -(-((1 << 27) - longest) // PAGE_SIZE)
    assert entries(moves, -best * PAGE_SIZE) == 1
    assert entries(moves, (1 - best) * PAGE_SIZE) == 0
    assert all(entries(moves, pages * PAGE_SIZE) != 1 for pages in range(0, best, 97))


def test_by_hand_wants_every_bit(arch):
    """Any bit that is wrong is counted, and said to be in a field or outside."""
    one = by_hand.call(arch.name)
    right = solution("by-hand", arch.name).partition('bytes = "')[2].partition('"')[0]
    assert bytes.fromhex(right) == one.after
    for bit in range(8 * len(one.after)):
        code = int.from_bytes(one.after, "little") ^ 1 << bit
        text = code.to_bytes(len(one.after), "little").hex()
        verdict = grade("by-hand", arch.name, bytes=text)
        assert (verdict.passed, verdict.score) == (False, 1)
        outside = "bits changed outside of the fields" in failing(verdict)
        assert outside is ("X is off by" not in failing(verdict))
    assert failing(grade("by-hand", arch.name, bytes="00")) == {"bytes"}


def test_by_hand_is_what_the_manuals_say():
    """The displacement that stands in the solutions leads to the function, by hand."""
    x86, arm, riscv = (by_hand.call(name) for name in ("x86_64", "arm64", "riscv64"))
    assert x86.place + 4 + int.from_bytes(x86.after, "little", signed=True) == x86.value
    word = int.from_bytes(arm.after, "little")
    assert word >> 26 == 0b100101
    assert arm.place + 4 * ((word & 0x3FFFFFF) - (1 << 26)) == arm.value
    auipc, jalr = (int.from_bytes(riscv.after[at : at + 4], "little") for at in (0, 4))
    upper, lower = (auipc & 0xFFFFF000) - (1 << 32), (jalr >> 20) - (1 << 12)
    assert riscv.place + upper + lower == riscv.value
    mips = by_hand.call("mips64el")
    assert int.from_bytes(mips.after, "little") & 0xFFFF == (mips.value + 0x8000) >> 16 & 0xFFFF


def test_first_refusal_is_one_and_just_outside(arch):
    """A page less and nothing is refused; X is outside of the reach by no more than a page."""
    ((row, x),) = first_refusal.refused(arch.name)
    far = first_refusal.least(arch.name)
    assert not len(one_plt.motion(arch.name).at(text=0, data=PAGE_SIZE - far).failed)
    assert row.reach.lo - PAGE_SIZE <= x < row.reach.lo
    assert grade("first-refusal", arch.name, type=row.name, x=x).passed
    assert grade("first-refusal", arch.name, type=row.name, x=x % (1 << 64)).passed
    for off in (1, -1, PAGE_SIZE, 1 << 31):
        verdict = grade("first-refusal", arch.name, type=row.name, x=x + off)
        assert "X is off by" in failing(verdict)
        assert verdict.score == abs(off)
    for other in one_plt.motion(arch.name).rows.values():
        if other.name != row.name:
            assert "the type" in failing(grade("first-refusal", arch.name, type=other.name, x=x))


# Loading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS["repair-else"].best)
def test_repair_else_refuses_whatever_some_call_misses(name):
    """A range is refused when the ends of it and of the image are too far apart, and else is not."""
    arch = arch_by_name(name)
    reach, image = arch.link.call.reach, arch.loads.address_map().image.size
    most, chance = repair_else.spare(arch), random.Random(2)
    # Ranges that are too far, too large, over the image, empty.
    for start, end in [
        (-most - PAGE_SIZE, 0),
        (-most, PAGE_SIZE),
        (image - PAGE_SIZE, image + PAGE_SIZE),
        (0, 0),
        (PAGE_SIZE, -PAGE_SIZE),
        (-4 * most, -3 * most),
        *((chance.randrange(-most, 0) * 2 & -PAGE_SIZE, image) for _ in range(20)),
    ]:
        assert failing(grade("repair-else", name, start=start, end=end)), (start, end)
    for start, end in ((-most, 0), (-most // 2 & -PAGE_SIZE, -PAGE_SIZE)):
        longest = max(image, end) - min(start, 0) - reach.align
        assert longest in reach
        assert -longest in reach
        verdict = grade("repair-else", name, start=start, end=end)
        assert verdict.passed
        assert verdict.score == (most - (end - start)) // PAGE_SIZE
    assert most + PAGE_SIZE + image - reach.align not in reach


def test_load_order_takes_what_a_kernel_takes():
    """Only a list in which the exporter comes first and goes last passes."""
    names = ("mathuser", "mathlib", "sorting")
    for load, unload in product(permutations(names), permutations(names, 3)):
        good = load.index("mathlib") < load.index("mathuser")
        good &= unload.index("mathuser") < unload.index("mathlib")
        if random.Random(f"{load}{unload}").random() < 0.4 or good:
            verdict = grade("load-order", "arm64", load=list(load), unload=list(unload))
            assert verdict.passed is good, (load, unload)
            assert verdict.score == 3
    for load, unload in (
        ([], []),
        (["mathlib"], ["mathlib"]),
        (["mathlib", "mathuser"], ["mathuser"]),
    ):
        assert not grade("load-order", "arm64", load=load, unload=unload).passed


# Patching ---------------------------------------------------------------------------------------


def explored(steps, old, new, granule, trap):
    """Return what a CPU can execute that fetches each granule whenever it likes, and must at a sync."""
    count = len(old) // granule

    def cut(code):
        return tuple(code[granule * at : granule * (at + 1)] for at in range(count))

    memory, states, stopped, met = cut(old), {cut(old)}, False, []
    for step in steps:
        stores = {"break": [(0, trap)] if trap else [], "first": [(0, cut(new)[0])]}
        stores |= {
            "all": list(enumerate(cut(new))),
            "tail": list(enumerate(cut(new)))[1:],
        }
        for at, piece in stores.get(step, []):
            memory = (*memory[:at], piece, *memory[at + 1 :])
            grown = set()
            for state in states:
                grown |= set(product(*({had, now} for had, now in zip(state, memory, strict=True))))
            states = grown
            met.append(set() if stopped else {b"".join(state) for state in states})
        if step == "sync":
            states = {memory}
        stopped = step == "stop" or (stopped and step != "start")
        if not stores.get(step):
            met.append(set() if stopped else {b"".join(state) for state in states})
    return met


@pytest.mark.parametrize("name", TASKS["missing-sync"].best)
def test_missing_sync_finds_what_an_explorer_finds(name):
    """What CPUs may meet is what one meets that fetches at any time, for random protocols."""
    jump = Jump(arch_by_name(name))
    poke, live = jump.machine.arch.text_poke, jump.machine.arch.live_patch
    words, chance = list(missing_sync.STEPS), random.Random(3)
    passed = 0
    protocols = [[chance.choice(words) for _ in range(chance.randrange(1, 7))] for _ in range(60)]
    protocols.append(list(read("x.toml", solution("missing-sync", name))[2]["steps"]))
    for steps in protocols:
        args = (steps, jump.old, jump.new, poke.granule, live.breakpoint)
        met = [codes for _, _, codes in missing_sync.run(*args)]
        assert met == explored(*args)
        torn = {code for codes in met for code in codes} - {jump.old, jump.new}
        torn = {code for code in torn if not live.breakpoint or code[:1] != live.breakpoint}
        assert {code for _, _, code in missing_sync.torn(steps, jump)} == torn
        passed += not torn and met[-1] == {jump.new}
    assert passed


@pytest.mark.parametrize("name", TASKS["missing-sync"].best)
def test_missing_sync_has_no_shorter_protocol(name):
    """With a sync less than the best known, nothing of that many steps passes."""
    jump = Jump(arch_by_name(name))
    right = missing_sync.TASK.best[name]
    solved = read("x.toml", solution("missing-sync", name))[2]["steps"]
    assert grade("missing-sync", name, steps=solved).passed
    has = jump.machine.arch.live_patch.breakpoint
    words = ["break", "tail", "first", "sync"] if has else ["all", "sync", "stop", "start"]
    for steps in product(words, repeat=min(len(solved) - 1, 5)):
        if steps.count("sync") < right:
            fine = not missing_sync.torn(steps, jump)
            fine &= missing_sync.at_last(steps, jump) == {jump.new}
            assert not fine, steps


def test_missing_sync_refuses_to_stop_where_nobody_has_to():
    """Stopping all CPUs is for those that have no other way."""
    steps = ["stop", "all", "sync", "start"]
    assert failing(grade("missing-sync", "x86_64", steps=steps)) == {"other CPUs stopped"}
    assert failing(grade("missing-sync", "riscv64", steps=steps[:-1])) >= {"stopped at the end"}


def jal(distance):
    """Return JAL x0 to a distance (RISC-V unprivileged, 2.5.1)."""
    bits = (distance >> 20 & 1) << 31 | (distance >> 1 & 0x3FF) << 21
    bits |= (distance >> 11 & 1) << 20 | (distance >> 12 & 0xFF) << 12
    return (bits | 0x6F).to_bytes(4, "little")


def jmp(distance):
    """Return JMP rel32 to a distance (Intel SDM)."""
    return b"\xe9" + (distance - 5).to_bytes(4, "little", signed=True)


@pytest.mark.parametrize(("name", "encode", "granule"), [("riscv64", jal, 2), ("x86_64", jmp, 1)])
def test_one_store_counts_stores_as_the_manuals_encode(name, encode, granule):
    """Passes only where the encodings differ in one store, and functions are apart."""
    chance, passed = random.Random(4), 0
    for number in range(16):
        at, old, new = (chance.randrange(0, 7 * 64) * 64 for _ in range(3))
        new = old + 4096 if number % 4 == 0 and old < 6 * 4096 else new
        verdict = grade("one-store", name, jump=at, old=old, new=new)
        codes = encode(old - at), encode(new - at)
        differ = sum(
            codes[0][part : part + granule] != codes[1][part : part + granule]
            for part in range(0, len(codes[0]), granule)
        )
        assert verdict.score == differ
        apart = abs(old - new) >= PAGE_SIZE and at not in (old, new)
        assert verdict.passed is (differ == 1 and apart)
        passed += verdict.passed
    assert passed
    assert one_store.TASK.best[name] == 1


# Managing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS["fewest-flushes"].best)
def test_fewest_flushes_counts_mappings(name):
    """A write costs a flush for each mapping of its pages; no cover of the places costs less."""
    arch = arch_by_name(name)
    pages, sites = arch.text_poke.pages, fewest_flushes.SITES
    times = 2 if arch.text_poke.flush_first else 1  # patch_map of riscv flushes, too
    chance, granule = random.Random(5), arch.text_poke.granule
    for _ in range(10):
        writes = []
        for _ in range(chance.randrange(1, 8)):
            start = chance.randrange(0, 15 * PAGE_SIZE) // 8 * 8
            writes.append([start, chance.randrange(1, PAGE_SIZE // 4) * 8])
        assert all((start | size) % granule == 0 for start, size in writes)
        touched = [
            (start + size - 1) // PAGE_SIZE - start // PAGE_SIZE + 1 for start, size in writes
        ]
        verdict = grade("fewest-flushes", name, writes=writes)
        assert verdict.score == times * sum(-(-each // pages) for each in touched)
        reached = sum(any(s <= at and at + 8 <= s + n for s, n in writes) for at in sites)
        assert verdict.checks[1].found.split(",")[0] == str(reached)
        assert not verdict.passed
    # The fewest mappings of so many neighbouring pages that have all pages with places.
    wanted, fewest = sorted({site // PAGE_SIZE for site in sites}), 0
    while wanted:
        wanted, fewest = [page for page in wanted if page >= wanted[0] + pages], fewest + 1
    assert fewest_flushes.TASK.best[name] == times * fewest
    verdict = grade("fewest-flushes", name, writes=[[0, 8], [-8, 8], [1 << 16, 8]])
    assert "writes refused" in failing(verdict)


def test_churn_best_is_what_our_design_reaches(arch):
    """The best score that is known is the default design's; pages alone have no large leaf."""
    found = churn.measured(arch, "strata")
    assert not found.failures
    assert sum(sum(each.values()) for each in found.leaves.values()) == churn.TASK.best[arch.name]
    if arch is ALL[0]:
        small = churn.measured(arch, DESIGNS["vmalloc"])
        assert not small.failures
        assert small.large_share["TEXT"] == 0


def test_window_counts_what_the_lesson_counts():
    """Totals and what fits are those of the lesson, which were counted apart."""
    facts = told("fit").facts
    for near, unit, guard, rule in (
        (["TEXT"], 64, 0, "text only, 64 bytes"),
        (["TEXT"], 4096, 0, "text only, page"),
        (["TEXT"], 4096, 4096, "text only, page + guard page"),
        (["TEXT", "DATA", "RODATA", "RO_AFTER_INIT"], 4096, 4096, "all types, page + guard page"),
    ):
        verdict = grade("window", "arm64", near=near, unit=unit, guard=guard)
        assert verdict.score == facts[rule]["total"]
        assert verdict.checks[1].found == f"{facts[rule]['fit']:,}"
        assert verdict.passed is (facts[rule]["fit"] == 4350)
    assert "types that call, and lie elsewhere" in failing(
        grade("window", "arm64", near=["DATA"], unit=64, guard=0)
    )
