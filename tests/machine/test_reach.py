# SPDX-License-Identifier: GPL-2.0-or-later
"""Measured reach is what the manuals say, and the record, and the relocation rows."""

from __future__ import annotations

import re

import attrs
import capstone
import pytest

import archs
from archs.op import Op, OpKind
from loader.elf import parse
from machine import reach
from machine.reach import Measurement, measure
from tests.archs.facts import facts
from tests.support.tools import assemble


@pytest.fixture(scope="module")
def measured(arch: archs.Arch) -> tuple[Measurement, ...]:
    """Return what measuring every instruction of an architecture gave."""
    return tuple(measure(arch))


def test_measured_reach_is_what_the_manuals_print(arch, measured):
    """The guest arrives from the least to the greatest printed displacement, and no farther."""
    assert [m.branch for m in measured] == list(arch.link.branches)
    for found in measured:
        printed = facts(arch).link.branches[found.branch.mnemonic]
        assert found.measured is not None
        assert found.measured.lo == printed.least + printed.end, found.branch.mnemonic
        assert found.measured.hi - found.step == printed.greatest + printed.end, (
            found.branch.mnemonic
        )


def test_measured_reach_is_the_records(measured):
    """What execution shows is what the architecture's record says."""
    for found in measured:
        reach = found.branch.reach
        assert (found.measured.lo, found.measured.hi) == (reach.lo, reach.hi)
        assert found.step % reach.align == 0


def test_one_step_past_a_limit_leads_to_the_other_end(measured):
    """A truncated displacement wraps: past the greatest comes the least, and the reverse."""
    for found in measured:
        assert found.past_hi == found.measured.lo
        assert found.past_lo == found.measured.hi - found.step


def test_records_agree_with_the_relocation_rows(arch):
    """An instruction reaches what its relocation row says, counted from its own address."""
    for branch in arch.link.branches:
        fill = branch.probe.fills[0]
        row = arch.link.relocations[fill.relocation]
        assert row.op in (Op.PC, Op.PAGE) or (branch.region and row.op.kind is OpKind.REGION)
        shift = fill.at - fill.addend
        assert (row.reach.lo + shift, row.reach.hi + shift) == (branch.reach.lo, branch.reach.hi)
        if row.op is Op.PC:
            assert row.reach.align == branch.reach.align


def test_every_instruction_of_every_record_can_be_measured(arch):
    """Each instruction of a record has a probe."""
    assert all(branch.probe is not None for branch in arch.link.branches)


def test_probes_are_what_the_assembler_makes(arch, tmp_path):
    """A probe's bytes and relocation types are those of its source."""
    known = facts(arch).link
    for branch in arch.link.branches:
        probe = branch.probe
        source = known.branch_options + known.branches[branch.mnemonic].source
        source = source.replace("; ", "\n") + "\n"
        view = parse(assemble(arch.machine, source, tmp_path))
        text = bytes(view.contents(view.section(".text")))
        assert text.startswith(probe.setup + probe.code)
        rest = text[len(probe.setup + probe.code) :]
        assert len(rest) < 4 or (len(rest) < 16 and not any(rest))  # padded
        assert [
            (int(r["type"]), int(r["offset"]), int(r["addend"].astype("int64")))
            for r in view.tables[0].records
        ] == [(f.relocation, f.at + len(probe.setup), f.addend) for f in probe.fills]


def test_the_example_is_the_instruction_at_its_limit(arch, measured):
    """Disassembled, the last displacement that works is the measured one."""
    emulation = arch.runs.emulation
    mode = sum(getattr(capstone, name) for name in emulation.capstone_mode)
    engine = capstone.Cs(getattr(capstone, emulation.capstone_prefix), mode)
    for found in measured:
        last = found.measured.hi - found.step
        texts = [f"{m} {o}" for _, _, m, o in engine.disasm_lite(found.code, 0)]
        assert found.text.count(";") == len(texts) - 1
        numbers = [int(n, 0) for n in re.findall(r"-?0x[0-9a-f]+|(?<![\w])\d+\b", " ".join(texts))]
        if len(texts) == 2 and "auipc" in texts[0]:
            assert (numbers[0] << 12) + numbers[1] == last
        elif len(texts) == 2:
            assert sum(numbers) == last
        elif "rip" in texts[0]:
            assert numbers[-1] + len(found.code) == last
        else:
            assert numbers[-1] == last
        assert all(word.split()[0] in found.text for word in texts)


def test_a_displacement_truncated_to_nothing_leads_nowhere(arch):
    """A branch whose displacement wraps to 0 runs in circles, which is told as nowhere."""
    bench = reach._Bench(arch)
    for branch in arch.link.branches:
        probe = branch.probe
        around = branch.reach.hi - branch.reach.lo
        assert bench.lead(probe, around) == (None if probe.result is None else 0)
        assert bench.lead(probe, 64) == 64
    bench.close()


def test_measuring_leaves_nothing_behind(arch):
    """Every page that was put under a target is gone, and the invariants hold."""
    bench = reach._Bench(arch)
    free = bench._memory.physical.free_bytes
    for branch in arch.link.branches:
        bench.measure(branch, branch.probe)
        assert bench._memory.physical.free_bytes == free
    bench._memory.check()
    bench.close()


def test_an_instruction_without_a_probe_is_not_measured(arch):
    """A record's instruction that nobody knows how to execute is listed, not measured."""
    branch = attrs.evolve(arch.link.branches[0], mnemonic="new", probe=None)
    (found,) = measure(attrs.evolve(arch, link=attrs.evolve(arch.link, branches=(branch,))))
    assert found == Measurement(
        branch=branch, code=b"", text="", measured=None, step=branch.reach.align
    )


def test_an_instruction_without_a_limit_is_not_measured(arch):
    """Where no displacement fails within the address space, there is no measured interval."""
    bench = reach._Bench(arch)
    branch = next((b for b in arch.link.branches if b.what == "data"), arch.link.branches[0])
    bench.lead = lambda probe, displacement: displacement
    assert bench.measure(branch, branch.probe).measured is None
    bench.lead = lambda probe, displacement: None
    assert bench.measure(branch, branch.probe).measured is None
    bench.close()
