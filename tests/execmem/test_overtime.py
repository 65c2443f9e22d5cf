# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem compare --over-time`: tables, JSON and the chart say what was seen."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import attrs
import pytest

from archs import arch as arch_by_name
from execmem.cli import main
from execmem.comparing.compare import compare, workloads
from execmem.comparing.overtime import PANELS, series, svg

WORDS = ["compare", "--workload", "bpf-50-pages", "--arch", "riscv64", "--over-time", "4"]
WORDS += ["--design", "vmalloc", "--design", "default"]


@pytest.fixture(scope="module")
def runs():
    """Return 50 programs under two designs, looked at five times."""
    pairs = workloads("bpf-50-pages", [arch_by_name("riscv64")])
    return compare(pairs, ["vmalloc", "default"], moments=4)


def test_tables_and_document_have_the_moments(capsys, tmp_path, runs):
    """A row a moment; JSON has them as they were, and what operations cost."""
    chart = tmp_path / "over.svg"
    with pytest.raises(SystemExit, match="0"):
        main([*WORDS, "--svg", str(chart)])
    out = capsys.readouterr().out
    for run in runs:
        head = f"riscv64, {run.design}, bpf-50-pages"
        assert head in out.replace("RISC-V 64", "riscv64").replace(run.arch.title, "riscv64")
        for one in run.over_time.moments:
            live, direct = f"{one.live_bytes / 2**20:.1f}", f"{sum(one.direct_map.values()):,}"
            rows = [line.split() for line in out.splitlines()]
            assert any(
                row[:2] == [f"{one.operation:,}", live] and direct in row for row in rows if row
            )
    names = {text.text for text in ET.parse(chart).iter() if text.tag.endswith("text")}
    assert {"vmalloc", "strata", *(panel.title for panel in PANELS)} <= names
    with pytest.raises(SystemExit, match="0"):
        main([*WORDS, "--json"])
    for told, run in zip(json.loads(capsys.readouterr().out)["runs"], runs, strict=True):
        assert told["over_time"] == [attrs.asdict(one) for one in run.over_time.moments]
        (alloc,) = told["per_operation"]
        assert (alloc["kind"], alloc["operations"]) == ("alloc", 50)


def test_lines_go_where_the_values_are(runs):
    """Each line has a point a moment; the highest value of a panel is at its top, zero at its foot."""
    chart = ET.fromstring(svg("bpf-50-pages", series(runs)))
    lines = [one for one in chart.iter() if one.tag.endswith("polyline")]
    axes = [one for one in chart.iter() if one.get("class") == "axis"]
    assert (len(lines), len(axes)) == (len(PANELS) * 2, len(PANELS))
    for number, panel in enumerate(PANELS):
        path = axes[number].get("d")
        top, bottom = int(path.split()[1].split("V")[0]), int(path.split("V")[1].split("H")[0])
        heights = []
        values = []
        for run, line in zip(runs, lines[number * 2 :], strict=False):
            points = [point.split(",") for point in line.get("points").split()]
            assert len(points) == len(run.over_time.moments)
            heights += [float(y) for _, y in points]
            values += [panel.value(one) for one in run.over_time.moments]
        assert all(top <= y <= bottom for y in heights)
        order = [y for _, y in sorted(zip(values, heights, strict=True), key=lambda pair: pair[0])]
        assert order == sorted(order, reverse=True)
        if max(values) >= panel.least:
            assert min(heights) == top
