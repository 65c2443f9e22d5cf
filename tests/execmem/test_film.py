# SPDX-License-Identifier: GPL-2.0-or-later
"""Workloads as films: at any moment what is told is what memory, the allocator and `compare` say."""

from __future__ import annotations

import random

import attrs
import pytest

from allocator.workloads import Runner
from execmem.comparing.compare import branch_reach, compare, execmem_for, workloads
from execmem.comparing.film import LEFT_OUT, film

DESIGNS = ["strata", "vmalloc", "rox_cache", "bpf_prog_pack", "three_block"]
MOMENTS, PAGES = 2, 64


def load_of(name, arch):
    """Return a workload of the table, of an architecture."""
    return workloads(name, [arch])[0][1]


def shown(document, frame):
    """Return what a viewer has on the screen: chunk -> pages by palette, live bytes; and blocks."""
    chunks, blocks = {}, {}
    for each in document["frames"][: frame + 1]:
        for changed in each["chunks"]:
            runs = iter(changed["runs"])
            pages = [document["palette"][n] for n in runs for _ in range(next(runs))]
            chunks[int(document["chunks"][changed["chunk"]])] = pages, changed["live"]
        for changed in each["direct_map"]:
            blocks[changed >> 2] = changed & 3
    return chunks, blocks


def stepped(arch, load, design, count):
    """Return executable memory behind so many operations."""
    execmem = execmem_for(arch, design, memory=load.memory)
    runner = Runner(execmem, branch_reach(arch), rules=arch.loads.tlb)
    for operation in load.operations[:count]:
        runner.step(operation)
    return execmem


@pytest.mark.parametrize("name", ["server", "probes"])
def test_frames_are_what_memory_was_then(arch, name):
    """At random moments leaves, protections, types and live bytes are the page table's."""
    chance = random.Random(f"{arch.name} {name}")
    design = chance.choice(DESIGNS)
    load = load_of(name, arch)
    document = film(arch, load, design, frames=40)
    for number in chance.sample(range(len(document["frames"])), MOMENTS):
        execmem = stepped(arch, load, design, document["frames"][number]["operation"])
        chunks, blocks = shown(document, number)
        table, page, large = execmem.memory.page_table, document["page"], document["large"]
        types: dict[int, set[str]] = {}
        for each in execmem.allocations():
            for at in range(each.address // page, -(-each.interval.end // page)):
                types.setdefault(at * page, set()).add(each.type.name)
        told = 0
        for chunk, (pages, _) in chunks.items():
            told += sum(cell["leaf"] != 0 for cell in pages)
            for index in chance.sample(range(len(pages)), PAGES):
                at, cell = chunk + index * page, pages[index]
                found = table.translate(at)
                assert cell["leaf"] == (found.leaf if found else 0)
                assert cell["prot"] == (str(found.prot) if found else "")
                assert cell["type"] in types.get(at, {None})
        report = execmem.report()
        assert sum(used for _, used in chunks.values()) == sum(report.bytes.values())
        areas = [(int(each["start"]), int(each["end"])) for each in document["areas"]]
        image = execmem.memory.address_map.image
        mapped = sum(
            leaf.size // page
            for leaf in table.leaves()
            if any(start <= leaf.va < end for start, end in areas) and leaf.va not in image
        )
        assert told == mapped
        start = execmem.memory.direct_map.start
        for block, size in blocks.items():
            found = table.translate(start + block * large)
            paging = execmem.memory.paging
            assert size == 1 + (found.leaf >= paging.large) + (found.leaf >= paging.upper)


@pytest.mark.parametrize("design", ["default", "per_type"])
def test_measures_of_a_frame_are_those_of_compare(arch, design):
    """A workload that ends where a frame is taken gets the frame's measures.

    Of the default design only the last frame's: what it puts off is done at the end of a workload.
    """
    load = load_of("server", arch)
    document = film(arch, load, design, frames=9)
    frames = document["frames"][-1 if design == "default" else 1 :]
    frame = random.Random(arch.name).choice(frames)
    ended = attrs.evolve(load, operations=load.operations[: frame["operation"]])
    (run,) = compare([(arch, ended)], [design])
    measures = attrs.asdict(run.measures)
    expected = {name: value for name, value in measures.items() if name not in LEFT_OUT}
    assert frame["measures"] == expected | {"refused": len(run.measures.failures)}


def test_a_load_can_be_watched_closely(arch):
    """Inside of one operation leaves split and heal, and all memory that it takes is seen."""
    load = load_of("server", arch)
    many = [n for n, each in enumerate(load.operations, 1) if len(each.module.regions) == 7]
    document = film(arch, load, "rox_cache", closely=many[0])
    inside = [frame for frame in document["frames"] if frame["inside"]]
    module = load.operations[many[0] - 1].module
    taken = [frame["last"] for frame in inside if frame["last"].startswith("taken")]
    assert taken == [f"taken: {region.type.name} of module" for region in module.regions]
    assert any(frame["events"].get("leaf_splits") for frame in inside)
    assert any(frame["events"].get("collapses") for frame in inside)
    assert document["frames"][-1]["operation"] == many[0]
    assert not document["frames"][-1]["inside"]


def test_a_film_has_no_more_frames_than_operations(arch):
    """Where more moments are asked for than there are operations, each has one."""
    load = load_of("bpf-50-pages", arch)
    document = film(arch, load, "vmalloc", frames=1000)
    assert [frame["operation"] for frame in document["frames"]] == list(range(51))
