# SPDX-License-Identifier: GPL-2.0-or-later
"""Workloads: the tables, the sequences, traces, what running them measures, the iTLB model.

Long because all of it is looked at on the same tables and machines.
"""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import archs
from allocator import DESIGNS, Execmem, ExecmemError, KernelMemory, PhysicalMemory
from allocator.pagetable import PageTable
from allocator.types import (
    GIB,
    KIB,
    LARGE_PAGE_SIZE,
    MIB,
    PAGE_SIZE,
    Consumer,
    Interval,
    MemType,
    Prot,
)
from allocator.workloads import (
    WORKLOADS,
    Alloc,
    BranchReach,
    Free,
    Load,
    Module,
    Pages,
    Region,
    Runner,
    Seal,
    Settle,
    TraceError,
    Unload,
    Workload,
    debian,
    load_order,
    read_trace,
    run,
    workload,
    write_trace,
)
from allocator.workloads.cores import CORES, Core, Policy, TlbShape
from allocator.workloads.itlb import (
    CalledText,
    CallMix,
    InstructionTlb,
    mapped,
    misses_per_million,
    translations,
)
from allocator.workloads.operations import from_json, to_json
from allocator.workloads.sources import DESKTOP, SERVER, program_size
from tests.archs.facts import facts

X86_REACH = BranchReach(direct=Interval(-(1 << 31) + 5, (1 << 31) + 5))
ARM64_REACH = BranchReach(
    direct=Interval(-128 * MIB, 128 * MIB), plt=Interval(-4 * GIB, 4 * GIB - PAGE_SIZE)
)


@pytest.fixture
def x86(x86_map, x86_poke):
    """Return a function that makes executable memory of x86-64 under a design."""

    def make(design: str, memory: int = 2 * GIB, *, poke: bool = True) -> Execmem:
        kernel = KernelMemory(PhysicalMemory(memory), x86_map)
        text_poke = x86_poke if poke else None
        return Execmem(kernel, trap=b"\xcc", text_poke=text_poke, design=design)

    return make


@pytest.fixture
def tiny(tiny_map, arm64_poke):
    """Return a function that makes executable memory of the small arm64-like map."""

    def make(design: str) -> Execmem:
        kernel = KernelMemory(PhysicalMemory(64 * MIB), tiny_map)
        return Execmem(kernel, trap=bytes(4), text_poke=arm64_poke, design=design)

    return make


def numbers(measures):
    """Return the measures that time does not change."""
    found = attrs.asdict(measures)
    del found["seconds"], found["microseconds_per_operation"]
    return found


def module(name: str, *regions: tuple[MemType, int], **more: object) -> Module:
    """Return a module of these regions, 64-byte aligned, that calls the kernel."""
    more.setdefault("calls", (1, 0, 0))
    return Module(name=name, regions=tuple(Region(kind, n, 64) for kind, n in regions), **more)


# Tables and sequences --------------------------------------------------------------------------


def test_tables_hold_every_module(arch):
    """A table has as many modules, and as many bytes per type, as the files themselves."""
    if facts(arch).load.debian is None:
        pytest.skip(f"no modules of {arch.name} were measured")
    table = debian(arch.name)
    sums = dict.fromkeys(MemType, 0)
    for row in table.values():
        for region in row.regions:
            sums[region.type] += region.size
    found = [sums[kind] / MIB for kind in (MemType.TEXT, MemType.RODATA, MemType.DATA)]
    count, *expected = facts(arch).load.debian
    assert len(table) == count
    assert found == pytest.approx(expected, abs=0.005)


def test_a_table_that_is_missing_is_named():
    """There is no table for an unknown architecture, and the error tells which there are."""
    measured = sorted(a.name for a in archs.ALL if facts(a).load.debian is not None)
    with pytest.raises(ExecmemError, match=f"'vax'; there are {', '.join(measured)}"):
        debian("vax")


@given(st.lists(st.lists(st.integers(0, 30), max_size=4, unique=True), min_size=1, max_size=31))
def test_load_order_puts_dependencies_first(needs):
    """Each module comes once, after all that it depends on."""
    table = {
        str(number): module(str(number), depends=tuple(str(n) for n in needed if n < number))
        for number, needed in enumerate(needs)
    }
    seen: list[str] = []
    for item in load_order(table, reversed(table)):
        assert set(item.depends) <= set(seen)
        seen.append(item.name)
    assert sorted(seen) == sorted(table)


def test_load_order_survives_a_circle():
    """Modules that depend on each other come once each."""
    table = {"a": module("a", depends=("b",)), "b": module("b", depends=("a",))}
    assert {item.name for item in load_order(table, table)} == {"a", "b"}


def test_load_order_names_what_is_missing():
    """A name that is not in the table is an error, not silence."""
    with pytest.raises(ExecmemError, match="no module 'nope'"):
        list(load_order({}, ["nope"]))


def test_sets_name_modules_that_exist():
    """Every name of the desktop and server sets is a module of some architecture."""
    known = {name for arch in archs.ALL if facts(arch).load.debian for name in debian(arch.name)}
    for names in (DESKTOP, SERVER):
        assert len(set(names)) == len(names)
        assert set(names) <= known


def testprogram_sizes_have_the_published_quartiles():
    """Half of the BPF programs are below 500 bytes, three quarters below 2 KiB."""
    import random

    chance = random.Random(3)
    sizes = sorted(program_size(chance) for _ in range(4000))
    assert sum(size < 500 for size in sizes) / 4000 == pytest.approx(0.5, abs=0.03)
    assert sum(size < 2048 for size in sizes) / 4000 == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads_are_sound_sequences(name):
    """Nothing is unloaded or freed that is not there, nor used by what stays; keys are unique."""
    made = workload(name, "arm64")
    assert made.operations == workload(name, "arm64").operations
    loaded: dict[str, Module] = {}
    held: set[str] = set()
    for operation in made.operations:
        if isinstance(operation, Load):
            assert operation.module.name not in loaded
            if name != "debian-alphabetical":
                assert set(operation.module.depends) <= set(loaded)
            loaded[operation.module.name] = operation.module
        elif isinstance(operation, Unload):
            del loaded[operation.module]
            assert not any(operation.module in m.depends for m in loaded.values())
        elif isinstance(operation, Alloc):
            assert operation.key not in held
            held.add(operation.key)
        elif isinstance(operation, Free):
            held.remove(operation.key)
    assert loaded or held


def test_an_unknown_workload_is_refused():
    """The error names the workloads that there are."""
    with pytest.raises(ExecmemError, match="no workload 'nope'; there are debian, "):
        workload("nope", "arm64")


# Traces ----------------------------------------------------------------------------------------

texts = st.text(max_size=8)
operations = st.one_of(
    st.builds(
        Load,
        st.builds(
            Module,
            name=texts,
            regions=st.lists(
                st.builds(
                    Region,
                    st.sampled_from(MemType),
                    st.integers(1, 1 << 24),
                    st.sampled_from([1, 64, 4096]),
                ),
                unique_by=lambda region: region.type,
            ).map(tuple),
            plt_slots=st.tuples(st.integers(0, 99), st.integers(0, 9)),
            calls=st.tuples(st.integers(0, 99), st.integers(0, 9), st.integers(0, 9)),
            depends=st.lists(texts).map(tuple),
            together=st.booleans(),
        ),
        st.booleans(),
    ),
    st.builds(Settle, texts),
    st.builds(Seal, texts),
    st.builds(Unload, texts),
    st.builds(
        Alloc,
        key=texts,
        size=st.integers(1, 1 << 24),
        consumer=st.sampled_from(Consumer),
        type=st.sampled_from(MemType),
        align=st.sampled_from([1, 8, 4096]),
    ),
    st.builds(Free, texts),
    st.builds(Pages, st.integers(1, 99)),
)


@given(operations)
def test_a_line_of_a_trace_is_the_operation(operation):
    """Every operation survives JSON unchanged."""
    assert from_json(json.loads(json.dumps(to_json(operation)))) == operation


def test_a_trace_gives_the_workload_back(tmp_path):
    """Name, architecture, memory and operations come back from the file."""
    made = workload("no-modules", "riscv64")
    write_trace(tmp_path / "t.jsonl", made)
    assert read_trace(tmp_path / "t.jsonl") == made


HEAD = '{"trace": 1, "arch": "arm64", "workload": "w"}\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "an empty file is no trace"),
        ("hello\n", "line 1: not JSON"),
        ("[" * 100_000, "line 1: not JSON"),
        ('{"op": "free", "key": "a"}\n', "line 1: a trace begins with"),
        ('{"trace": 1, "workload": "w"}\n', "line 1: None is not a string"),
        ('{"trace": 1, "arch": "arm64", "workload": "w", "memory": 1e9}\n', "line 1: "),
        ('{"trace": 1, "arch": "a", "workload": "w", "memory": 281474976710656}\n', "line 1: "),
        (HEAD + '{"op": "free"', "line 2: not JSON"),
        (HEAD + "[]\n", "line 2: a field has the wrong type"),
        (HEAD + '{"op": "fly"}\n', "line 2: no operation 'fly'"),
        (HEAD + '{"op": "free"}\n', "line 2: 'key' is missing or unknown"),
        (HEAD + '{"op": "pages", "count": true}\n', "line 2: True is not an integer"),
        (HEAD + '{"op": "load", "module": "m", "regions": {"TXT": [1, 1]}}\n', "'TXT' is missing"),
        (HEAD + '{"op": "load", "module": "m", "regions": {"TEXT": [1, 3]}}\n', "power of two"),
        (HEAD + '{"op": "load", "module": "m", "regions": {"TEXT": [0, 1]}}\n', "0 is not an "),
        (HEAD + '{"op": "load", "module": "m", "regions": {"TEXT": 7}}\n', "wrong type"),
        (HEAD + '{"op": "load", "module": "m", "regions": {}, "settled": 0}\n', "neither true"),
        (HEAD + '{"op": "alloc", "key": "k", "size": 1, "consumer": "me"}\n', "'me'"),
    ],
)
def test_a_damaged_trace_is_refused_with_its_line(tmp_path, text, said):
    """Whatever is wrong with a trace becomes one TraceError that names the place."""
    path = tmp_path / "bad.jsonl"
    path.write_text(text, "utf-8")
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert said in str(caught.value)
    assert str(caught.value).startswith("bad.jsonl")


def test_a_trace_that_cannot_be_read_or_written_is_refused(tmp_path):
    """A folder, a missing file and bytes that are no text are errors of ours."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "binary"):
        with pytest.raises(TraceError):
            read_trace(path)
    with pytest.raises(ExecmemError):
        write_trace(tmp_path, workload("no-modules", "arm64"))


# Running ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("poke", [True, False], ids=["poke", "no-poke"])
def test_every_design_runs_a_mixed_workload(x86, design, poke):
    """Modules, programs, probes and churn leave every invariant true and refuse nothing."""
    churn = workload("churn", "x86_64").operations
    mixed = (*workload("no-modules", "x86_64").operations[:200], *churn[:20], *churn[184:260])
    execmem = x86(design, poke=poke)
    measures = run(Workload(name="mixed", arch="x86_64", operations=mixed), execmem, X86_REACH)
    execmem.check()
    assert not measures.failures
    assert measures.modules == sum(isinstance(operation, Load) for operation in mixed)
    assert measures.live_bytes == sum(a.size for a in execmem.allocations())
    assert measures.leaves["INIT_TEXT"] == {"4KiB": 0, "2MiB": 0}


@pytest.mark.parametrize("design", ["vmalloc", "per_type"])
def test_runs_are_repeatable(x86, design):
    """Two runs of one workload give the same numbers, all but time."""
    made = workload("no-modules", "x86_64")
    first, second = (numbers(run(made, x86(design), X86_REACH)) for _ in range(2))
    assert first == second


def test_leaves_of_small_pages_are_the_tables_pages(x86):
    """Under 4 KiB leaves every module's text takes its own pages, rounded up: the table's sum."""
    chosen = [m for m in list(debian("x86_64").values())[::20] if not m.depends]
    made = Workload(name="some", arch="x86_64", operations=tuple(map(Load, chosen)))
    measures = run(made, x86("vmalloc"), X86_REACH)
    for kind in (MemType.TEXT, MemType.RODATA, MemType.DATA, MemType.RO_AFTER_INIT):
        sizes = [r.size for m in chosen for r in m.regions if r.type is kind]
        pages = sum(-(-size // PAGE_SIZE) for size in sizes)
        assert measures.leaves[kind.name] == {"4KiB": pages, "2MiB": 0}
    live = [r.size for m in chosen for r in m.regions if not r.type.is_init]
    assert measures.live_bytes == sum(live)
    assert measures.padding_bytes == sum(-size % PAGE_SIZE for size in live)


def test_a_module_that_does_not_fit_goes_back_as_a_whole(tiny):
    """A refused module leaves nothing; what needs it is refused too, what does not is loaded."""
    big = module("big", (MemType.TEXT, 4096), (MemType.DATA, 16 * MIB))
    user = module("user", (MemType.TEXT, 4096), depends=("big",))
    other = module("other", (MemType.TEXT, 4096))
    execmem = tiny("vmalloc")
    before = execmem.memory.physical.free_bytes
    runner = Runner(execmem, ARM64_REACH)
    for item in (big, user):
        runner.step(Load(item))
    assert execmem.memory.physical.free_bytes == before
    assert not execmem.allocations()
    runner.step(Load(other))
    execmem.check()
    first, second = runner.measure().failures
    assert (first.operation, first.who, first.what) == (0, "big", "DATA for module")
    assert first.size == 16 * MIB
    assert (second.operation, second.who) == (1, "user")
    assert "needs big" in second.reason
    assert runner.measure().modules == 1


def test_plt_slots_count_for_modules_out_of_direct_reach(tiny):
    """Text in the far fallback window needs its module's PLT entries; near text needs none."""
    near = module("near", (MemType.TEXT, 2 * MIB), plt_slots=(5, 1))
    far = module("far", (MemType.TEXT, 2 * MIB), plt_slots=(7, 2))
    quiet = module("quiet", (MemType.TEXT, MIB), calls=(0, 0, 3))
    execmem = tiny("vmalloc")
    made = Workload(name="w", arch="arm64", operations=(Load(near), Load(far), Load(quiet)))
    measures = run(made, execmem, ARM64_REACH)
    assert not measures.failures
    assert (measures.modules, measures.modules_before_first_plt) == (3, 1)
    assert (measures.plt_modules, measures.plt_slots) == (1, 9)
    assert measures.window_used == 2 * MIB + PAGE_SIZE
    assert measures.fallback_used == 3 * MIB + 2 * PAGE_SIZE


def test_calling_a_module_out_of_reach_needs_a_plt_entry(tiny):
    """Text beside the kernel needs PLT entries too, when what it depends on lies far away."""
    low = module("low", (MemType.TEXT, 2 * MIB), plt_slots=(1, 0))
    far = module("far", (MemType.TEXT, 2 * MIB), plt_slots=(1, 0))
    caller = module("caller", (MemType.TEXT, PAGE_SIZE), plt_slots=(4, 0), depends=("far",))
    operations = tuple(map(Load, (low, far, caller)))
    execmem = tiny("vmalloc")
    measures = run(Workload(name="w", arch="arm64", operations=operations), execmem, ARM64_REACH)
    assert (measures.plt_modules, measures.plt_slots) == (2, 5)


def test_text_in_the_vmalloc_range_is_refused_with_the_reason(x86):
    """Where calls reach nothing a module is refused, and the failure says so."""
    execmem = x86("vmalloc_else")
    made = Workload(
        name="w", arch="x86_64", operations=(Load(module("hello", (MemType.TEXT, 100))),)
    )
    (failure,) = run(made, execmem, X86_REACH).failures
    assert "does not reach the kernel image" in failure.reason
    assert not execmem.allocations()


def test_trampolines_out_of_reach_are_counted(x86):
    """A thunk from where a branch does not get to the image counts, one in the window does not."""
    made = Workload(
        name="w",
        arch="x86_64",
        operations=(Alloc(key="t", size=64, consumer=Consumer.THUNK),),
    )
    assert run(made, x86("vmalloc"), X86_REACH).out_of_reach == 0
    assert run(made, x86("vmalloc_else"), X86_REACH).out_of_reach == 1


def test_the_direct_map_shatters_with_scattered_pages_only(x86):
    """Protected pages split direct-map leaves in proportion to programs; whole chunks do not."""

    def small_leaves(design: str, programs: int) -> int:
        operations = workload("bpf-512", "x86_64").operations[: 2 * programs]
        made = Workload(name="bpf", arch="x86_64", operations=operations)
        measures = run(made, x86(design), X86_REACH)
        assert not measures.failures
        return measures.direct_map_after["4KiB"] - measures.direct_map_before["4KiB"]

    few, many = small_leaves("vmalloc", 64), small_leaves("vmalloc", 256)
    assert 3 < many / few < 5
    assert small_leaves("per_type", 64) == small_leaves("per_type", 256) == 0


def test_a_chunk_held_by_something_tiny_is_pinned(x86):
    """A 2 MiB chunk of which a sliver is in use counts as pinned, a well used one does not."""
    execmem = x86("per_type")
    runner = Runner(execmem, X86_REACH)
    for number in range(4):
        runner.step(Alloc(key=str(number), size=LARGE_PAGE_SIZE // 4, consumer=Consumer.BPF))
    runner.step(Alloc(key="tiny", size=64, consumer=Consumer.BPF))
    assert runner.measure().chunks_pinned == 1
    runner.step(Alloc(key="more", size=LARGE_PAGE_SIZE // 2, consumer=Consumer.BPF))
    assert runner.measure().chunks_pinned == 0


def test_unknown_names_are_ignored_on_the_way_out(x86):
    """Freeing what a refused operation never got changes nothing and is no failure."""
    runner = Runner(x86("vmalloc"), X86_REACH)
    runner.step(Unload("nobody"))
    runner.step(Free("nothing"))
    assert not runner.measure().failures
    assert runner.measure().operations == 0


def test_loading_twice_is_a_failure(x86):
    """A second load, and a key that is taken, are refused; what is there stays."""
    runner = Runner(x86("vmalloc"), X86_REACH)
    item = Load(module("m", (MemType.TEXT, 10)))
    slot = Alloc(key="k", size=8, consumer=Consumer.KPROBES)
    for operation in (item, slot, item, slot):
        runner.step(operation)
    measures = runner.measure()
    assert [f.operation for f in measures.failures] == [2, 3]
    assert measures.live_bytes == 18


@pytest.mark.parametrize(("design", "guards"), [("vmalloc", 2), ("rox_cache", 5)])
def test_a_module_of_before_types_has_areas_where_the_design_has(x86, design, guards):
    """Guard pages count areas: core and init, or each type of data and the cache."""
    execmem = x86(design)
    runner = Runner(execmem, X86_REACH)
    item = module("m", *((kind, 100) for kind in MemType if kind.value != 3), together=True)
    runner.step(Load(item, settled=False))
    assert not runner.failures
    assert execmem.memory.events.guard_pages == guards
    runner.step(Settle("m"))
    runner.step(Unload("m"))
    execmem.check()
    assert execmem.report().bytes == {}


def test_a_module_settles_later_and_memory_is_sealed_by_key(x86):
    """Init memory stays until then; a second seal is a failure, an unknown name is not."""
    execmem = x86("strata")
    runner = Runner(execmem, X86_REACH)
    kinds = (MemType.TEXT, MemType.RO_AFTER_INIT, MemType.INIT_TEXT)
    late = Alloc(key="k", size=8, consumer=Consumer.BPF, type=MemType.RO_AFTER_INIT)
    text = Alloc(key="t", size=8, consumer=Consumer.BPF)
    for operation in (
        Load(module("m", *((kind, 100) for kind in kinds)), settled=False),
        late,
        text,
    ):
        runner.step(operation)
    assert runner.measure().live_bytes == 316
    open_bytes = {a.type: execmem.memory.translate(a.address).prot for a in execmem.allocations()}
    assert open_bytes[MemType.RO_AFTER_INIT] is Prot.RW
    for operation in (Seal("k"), Settle("m"), Settle("m"), Settle("n"), Seal("x")):
        runner.step(operation)
    assert not runner.failures
    runner.step(Seal("k"))
    runner.step(Seal("t"))
    assert [failure.who for failure in runner.failures] == ["k", "t"]
    assert runner.measure().live_bytes == 216
    execmem.check()
    prots = {a.type: execmem.memory.translate(a.address).prot for a in execmem.allocations()}
    assert prots == {MemType.TEXT: Prot.RX, MemType.RO_AFTER_INIT: Prot.R}
    for operation in (Unload("m"), Free("k"), Free("t"), Settle("m")):
        runner.step(operation)
    assert not execmem.allocations()


# iTLB ------------------------------------------------------------------------------------------


@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.lists(st.integers(0, 20), max_size=80),
)
def test_a_set_keeps_the_pages_used_last(sets, ways, pages):
    """A page hits when fewer than `ways` other pages of its set came since its last use."""
    tlb = InstructionTlb(Core(title="t", arch="x", small=TlbShape(sets, ways)))
    for number, page in enumerate(pages):
        earlier = pages[:number]
        expected = False
        if page in earlier:
            last = number - 1 - earlier[::-1].index(page)
            others = {p for p in earlier[last + 1 :] if p % sets == page % sets}
            expected = len(others) < ways
        assert tlb.access(page * PAGE_SIZE + 12, PAGE_SIZE) is expected


def stays(shape, past):
    """Return what a set holds after `past`, the keys that were asked for there, by definition.

    LRU: the last so many that were asked for. FIFO: the last so many that were brought in. PLRU: who
    comes in takes a free place; else, of the halves of all places, of the halves of that one
    and so on, that which was used longer ago.
    """
    if shape.policy is Policy.LRU:
        return set(list(dict.fromkeys(past[::-1]))[: shape.ways])
    if shape.policy is Policy.FIFO:
        brought = []
        for key in past:
            if key not in brought[-shape.ways :]:
                brought.append(key)
        return set(brought[-shape.ways :])
    places, used = [], []
    for now, key in enumerate(past):
        if key in places:
            used[places.index(key)] = now
        elif len(places) < shape.ways:
            places.append(key)
            used.append(now)
        else:
            halves = range(shape.ways)
            while len(halves) > 1:
                middle = len(halves) // 2
                halves = min(
                    halves[:middle], halves[middle:], key=lambda half: max(used[at] for at in half)
                )
            places[halves[0]], used[halves[0]] = key, now
    return set(places)


def by_definition(core, fetches):
    """Return what each fetch took, from the whole history: (level, least, most)."""
    asked = {"first": [], "large": [], "second": [], "walks": []}

    def hit(array, shape, page, key):
        past = [k for p, k in asked[array] if p % shape.sets == page % shape.sets]
        asked[array].append((page, key))
        return key in stays(shape, past)

    for address, leaf, around in fetches:
        big = leaf >= LARGE_PAGE_SIZE
        size = leaf if big else max(leaf, min(around, core.merges))
        page, key = address // size, (address // size * size, big)
        apart = big and core.large is not None
        shape = core.large if apart else core.small
        if hit("large" if apart else "first", shape, page, key):
            yield 1, 0, 0
        elif core.second is not None and hit("second", core.second, page, key):
            yield 2, 0, 0
        else:
            depth = core.levels - 1 if big else core.levels
            table = address // LARGE_PAGE_SIZE
            if core.whole_walks:
                yield 0, depth, depth
            elif core.walks is None:
                yield 0, 1, depth
            elif not big and hit("walks", core.walks, table, table):
                yield 0, 1, 1
            else:
                yield 0, depth, depth


COMPARE = (Path(__file__).parents[2] / "docs" / "compare.md").read_text("utf-8")
SHAPES = st.one_of(
    st.builds(
        TlbShape,
        st.sampled_from([1, 2, 4]),
        st.integers(1, 3),
        st.sampled_from([Policy.LRU, Policy.FIFO]),
    ),
    st.builds(TlbShape, st.just(1), st.sampled_from([1, 2, 4, 8]), st.just(Policy.PLRU)),
)


@settings(max_examples=200, deadline=None)
@given(
    core=st.builds(
        Core,
        title=st.just("t"),
        arch=st.just("x"),
        small=SHAPES,
        large=st.none() | SHAPES,
        second=st.none() | SHAPES,
        walks=st.none() | SHAPES,
        whole_walks=st.booleans(),
        merges=st.sampled_from([0, 0x4000, 0x10000]),
        levels=st.sampled_from([3, 4]),
    ),
    places=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40), st.booleans()), max_size=60),
)
def test_fetches_take_what_the_definition_says(core, places):
    """Two levels, merged entries and a cache of walks: as a slow model that looks at all history."""
    fetches = []
    for region, page, inside in places:
        large = region == 3
        address = region * LARGE_PAGE_SIZE + page * PAGE_SIZE
        leaf = LARGE_PAGE_SIZE if large else PAGE_SIZE
        fetches.append((address, leaf, 0x10000 if inside and not large else 0))
    tlb = InstructionTlb(core)
    assert [tuple(tlb.lookup(*each)) for each in fetches] == list(by_definition(core, fetches))


@pytest.mark.parametrize("name", CORES)
def test_cores_hold_as_many_pages_as_is_published(name):
    """Going round and round: all hit that fit, and one page more than fits misses each time.

    The numbers are those of the texts that `sources` names: entries of the first level, of the
    second.
    """
    entries = {
        "skylake": (128, 1536),
        "golden-cove": (256, 2048),
        "zen2": (64, 512),
        "cortex-a76": (48, 1280),
        "cortex-a53": (10, 512),
        "c910": (32, 1024),
    }[name]
    core = CORES[name]
    assert (core.small.entries, core.second.entries) == entries
    assert core.sources
    row = next(line for line in COMPARE.splitlines() if line.startswith(f"| {core.title} |"))
    assert all(f" {count:,}" in row for count in entries)
    assert bool(row.split("|")[-2].strip()) == bool(core.unverified)
    for level, held in enumerate(entries, 1):
        for count in (held, held + 1):
            tlb = InstructionTlb(core)
            for _ in range(2):
                levels = [tlb.lookup(page * PAGE_SIZE, PAGE_SIZE).level for page in range(count)]
            within = [0 < each <= level for each in levels]
            assert all(within) == (count == held), (level, count)


@pytest.mark.parametrize("page", [4 * KIB, 64 * KIB])
def test_a_run_is_an_entry_only_where_a_core_holds_it_as_one(page):
    """Text of 8 runs and a TLB of 8 entries: none is missed, or, by pages, nearly all are."""
    paging = archs.arch("arm64").loads.paging(page)
    core = Core(title="t", arch="x", small=TlbShape(1, 8), levels=3)
    start = 1 << 40
    text = CalledText(Interval(start, start + 8 * paging.run), (0, 0, 1))
    leaves = dict.fromkeys(range(start // page, text.text.end // page), paging.run)
    image = Interval(1 << 50, (1 << 50) + paging.large)
    mix = CallMix(calls=4000, other_accesses=0)
    cores = {"pages": core, "runs": attrs.evolve(core, runs=True)}
    found = translations([text], leaves, image, cores=cores, mix=mix, paging=paging)
    assert found["runs"].misses == 0
    assert found["pages"].misses > 500_000
    assert found["pages"].reads[1] == 3 * found["pages"].misses  # a run would be of the last level


def test_runs_are_what_lies_contiguous_and_aligned():
    """Runs of pages are found in page tables: aligned in both addresses, all of them there."""
    table = PageTable()
    base = 0xFFFFFFFFC0000000
    frames = [*range(0x104, 0x108), 0x200, 0x202, *range(0x301, 0x305), *range(0x300, 0x302)]
    for page, frame in enumerate(frames):
        table.set_pte(base + page * PAGE_SIZE, frame * PAGE_SIZE, Prot.RX)
    text = CalledText(Interval(base, base + len(frames) * PAGE_SIZE))
    leaves, runs = mapped(table, [text], PAGE_SIZE, 4 * PAGE_SIZE)
    assert leaves == {}
    first = base // PAGE_SIZE
    assert runs == {
        **dict.fromkeys(range(first, first + 4), 4 * PAGE_SIZE),
        **dict.fromkeys(range(first + 10, first + 12), 2 * PAGE_SIZE),
    }


def test_walks_are_fewer_than_misses_and_reads_have_bounds():
    """A second level takes misses away; a walk reads at least one entry, at most every level."""
    base = 0xFFFFFFFFC0000000
    image = Interval(0xFFFFFFFF81000000, 0xFFFFFFFF83000000)
    pages = [base + page * PAGE_SIZE for page in range(3000)]
    targets = [CalledText(Interval(at, at + PAGE_SIZE)) for at in pages]
    for name, found in translations(targets, {}, image).items():
        core = CORES[name]
        assert 0 < found.walks < found.misses
        least, most = found.reads
        assert found.walks <= least <= most <= core.levels * found.walks
        assert (least == most) == (core.walks is not None or core.whole_walks)
        assert (most == core.levels * found.walks) == (core.walks is None)


def test_sizes_compete_only_where_the_core_shares_entries():
    """A core with an array of its own for 2 MiB keeps them whatever 4 KiB pages do."""
    apart = InstructionTlb(Core(title="t", arch="x", small=TlbShape(1, 2), large=TlbShape(1, 1)))
    shared = InstructionTlb(Core(title="t", arch="x", small=TlbShape(1, 2)))
    for tlb in (apart, shared):
        tlb.access(0, LARGE_PAGE_SIZE)
        for page in range(4):
            tlb.access(page * PAGE_SIZE, PAGE_SIZE)
    assert apart.access(LARGE_PAGE_SIZE - 1, LARGE_PAGE_SIZE)
    assert not shared.access(LARGE_PAGE_SIZE - 1, LARGE_PAGE_SIZE)


def test_one_large_leaf_misses_at_least_five_times_less_than_fifty_pages():
    """200 KiB of programs: published are 1,600 misses a second on 4 KiB, 300 on one 2 MiB page."""
    base = 0xFFFFFFFFC0000000
    image = Interval(0xFFFFFFFF81000000, 0xFFFFFFFF83000000)
    targets = [
        CalledText(Interval(base + page * PAGE_SIZE, base + (page + 1) * PAGE_SIZE))
        for page in range(50)
    ]
    large = dict.fromkeys(range(base // PAGE_SIZE, base // PAGE_SIZE + 512), LARGE_PAGE_SIZE)
    on_small = misses_per_million(targets, {}, image)
    on_large = misses_per_million(targets, large, image)
    for core in CORES:
        assert on_small[core] >= 5 * on_large[core] > 0 or on_large[core] == 0 < on_small[core]


def test_nothing_to_call_misses_nothing():
    """Without texts there are no misses; without other code a small text stays in the TLB."""
    image = Interval(0, PAGE_SIZE)
    assert set(misses_per_million([], {}, image).values()) == {0.0}
    alone = [CalledText(Interval(1 << 40, (1 << 40) + 8 * PAGE_SIZE))]
    quiet = CallMix(calls=500, other_accesses=0)
    assert set(misses_per_million(alone, {}, image, mix=quiet).values()) == {0.0}
