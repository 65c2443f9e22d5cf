# SPDX-License-Identifier: GPL-2.0-or-later
"""Which designs no other one beats."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import attrs
import pytest

from archs import archs
from execmem.cli import main
from execmem.comparing.compare import compare, workloads
from execmem.comparing.frontier import COLUMNS, standings, svg


@pytest.fixture(scope="module")
def runs():
    """Return a server's modules under three designs, on the architectures that poke."""
    chosen = [one for one in archs() if one.text_poke is not None]
    return compare(workloads("server", chosen), ["vmalloc", "per_type", "default"])


def test_a_beaten_design_has_no_less_of_anything(runs):
    """Whoever beats is no worse in any column and better in one; nobody on the frontier is beaten."""
    for one in standings(runs):
        others = [o for o in standings(runs) if (o.arch, o.design) != (one.arch, one.design)]
        for other in (o for o in others if o.arch == one.arch):
            no_worse = all(other.values[name] <= one.values[name] for name in COLUMNS)
            better = any(other.values[name] < one.values[name] for name in COLUMNS)
            assert (other.design in one.beaten_by) is (no_worse and better)


def test_what_refuses_stands_nowhere(runs):
    """Less work is no merit."""
    refused = attrs.evolve(runs[0].measures, failures=("something",), tlb_flushes_all=0)
    found = standings([attrs.evolve(runs[0], measures=refused), *runs[1:]])
    assert len(found) == len(runs) - 1


def test_the_default_design_has_least_of_all_but_local_flushes(runs):
    """First or equal in entries, leaves, splits, flushes of all CPUs and padding, everywhere."""
    ours = [one for one in standings(runs) if one.design == "strata"]
    assert len(ours) == 3
    for one in ours:
        assert set(one.best) >= set(COLUMNS) - {"tlb_flushes_local"}
        assert not one.beaten_by


def test_a_load_a_seal_an_unload_cost_at_most_a_flush_of_all_cpus_each(arch):
    """Of a server's modules, chunks that come included; without text_poke freed init text is one."""
    (found,) = compare(workloads("server", [arch]), ["default"])
    measures = found.measures
    steps = {name: counts["all"] for name, counts in measures.flushes.steps.items()}
    assert steps["alloc"] + steps["write"] + steps["finish"] <= measures.modules
    assert steps["seal"] + steps["free"] <= 2 * measures.modules
    assert steps["quiet"] == 1
    if arch.text_poke is not None:
        assert steps["finish"] == steps["write"] == steps["free"] == 0
        assert measures.flushes.steps["write"]["local"] == measures.modules


def test_the_command_tells_and_draws_the_frontier(capsys, tmp_path):
    """The table names who is on it; the chart is XML with every design's name."""
    words = ["compare", "--workload", "no-modules", "--arch", "riscv64", "--design", "vmalloc"]
    words += ["--design", "default"]
    chart = tmp_path / "frontier.svg"
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--frontier", "--svg", str(chart)])
    out = capsys.readouterr().out
    assert "On the frontier: vmalloc, strata." in out
    names = {text.text for text in ET.parse(chart).iter() if text.tag.endswith("text")}
    assert {"vmalloc", "strata", "riscv64, no-modules"} <= names
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert [one["design"] for one in document["frontier"]] == ["vmalloc", "strata"]
    assert set(document["frontier"][0]["values"]) == set(COLUMNS)


def test_equal_designs_share_a_dot(runs):
    """Two designs with the same flushes are one dot with two names."""
    one = standings(runs[:1])[0]
    twice = svg([one, attrs.evolve(one, design="twin")])
    assert twice.count("<circle") == 1
    assert ">twin<" in twice
    assert f">{one.design}<" in twice
