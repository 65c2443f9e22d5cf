# SPDX-License-Identifier: GPL-2.0-or-later
"""The report for maintainers."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

from allocator.types import size_text
from archs import arch as arch_by_name
from execmem import maintainers
from execmem.comparing import frontier
from execmem.comparing.compare import compare, workloads
from execmem.maintainers import AT_SCALE
from loader.files import SUFFIXES

PAGE = Path(__file__).parents[2] / "docs" / "report.md"


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """Return the paths of documents as `execmem compare --json` writes them, and their runs."""
    folder, found = tmp_path_factory.mktemp("documents"), {}
    for name in ("bpf-50-pages", "livepatch"):
        pairs = workloads("bpf-50-pages", [arch_by_name("riscv64")])
        runs = compare(pairs, ["vmalloc", "default"], moments=3 if name in AT_SCALE else None)
        stands = frontier.as_json(frontier.standings(runs))
        held = [run.as_json() | {"workload": name} for run in runs]
        path = folder / f"{name}.json"
        path.write_text(json.dumps({"frontier": stands, "runs": held}), "utf-8")
        found[name] = (path, stands)
    return found


def test_the_report_has_the_numbers_of_the_documents(documents, tmp_path):
    """Every value of every design stands in a row, what is best in bold; the chart is XML."""
    chart = tmp_path / "chart.svg"
    paths = [str(path) for path, _ in documents.values()]
    done = CliRunner().invoke(maintainers.main, [*paths, "--svg", str(chart)])
    assert done.exit_code == 0
    ET.parse(chart)
    assert "(chart.svg)" in done.output
    rows = [line for line in done.output.splitlines() if line.startswith("| riscv64 |")]
    over_time, rows = rows[4:], rows[:4]
    assert len(over_time) == 4
    for row, one in zip(rows, documents["livepatch"][1] * 2, strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1] == f"`{one['design']}`"
        for cell, (name, value) in zip(cells[2:], one["values"].items(), strict=True):
            assert cell.startswith("**") is (name in one["best"])
            if name != "padding_bytes":
                assert int(cell.strip("*").replace(",", "")) == value
    assert done.output.index("### bpf-50-pages") < done.output.index("## At scale")
    assert done.output.index("## At scale") < done.output.index("### livepatch")


def test_the_report_tells_how_memory_fared(documents, tmp_path):
    """What was worst and what was left, of each run that was looked at, with a chart of its own."""
    chart = tmp_path / "chart.svg"
    path, _ = documents["livepatch"]
    done = CliRunner().invoke(maintainers.main, [str(path), "--svg", str(chart)])
    assert done.exit_code == 0
    names = {text.text for text in ET.parse(tmp_path / "chart-livepatch.svg").iter()}
    assert {"vmalloc", "strata"} <= names
    assert "(chart-livepatch.svg)" in done.output
    assert "--over-time 3" in done.output
    told = [line for line in done.output.splitlines() if line.startswith("| riscv64 |")]
    runs = json.loads(path.read_text("utf-8"))["runs"]
    for line, run in zip(told[2:4], runs, strict=True):
        cells, moments = [cell.strip() for cell in line.strip("|").split("|")], run["over_time"]
        last, counted = moments[-1], [sum(one["leaves"].values()) for one in moments]
        assert cells[1:4] == [
            f"`{run['design']}`",
            size_text(max(one["free_mapped_bytes"] for one in moments)),
            size_text(last["free_mapped_bytes"]),
        ]
        assert cells[5:8] == [
            f"{count:,}" for count in (max(counted), counted[-1], sum(last["direct_map"].values()))
        ]
    # 50 programs under vmalloc: W goes, X comes, each with a flush of all CPUs.
    assert told[4].split("|")[3:5] == [" alloc ", " 2 / 2 / 2 "]


def test_what_is_no_document_is_said(tmp_path):
    """A line that a person can act on, and no traceback."""
    path = tmp_path / f"module{SUFFIXES[0]}"
    for content in ("", "{}", '{"frontier": [], "runs": []}'):
        path.write_text(content, "utf-8")
        done = CliRunner().invoke(maintainers.main, [str(path)])
        assert done.exit_code == 1
        assert "no document of execmem compare --json" in done.output
    done = CliRunner().invoke(maintainers.main, [str(tmp_path / "absent")])
    assert (done.exit_code, done.output.count("\n")) == (1, 1)


def test_the_page_is_made_of_this_text():
    """What is not a table of a run stands in the page as it stands here."""
    page = PAGE.read_text("utf-8")
    parts = (maintainers.HEAD, maintainers.FLUSHES, maintainers.MEASURED, maintainers.SCALE)
    for part in (*parts, *maintainers.WORDS.values()):
        assert part in page
