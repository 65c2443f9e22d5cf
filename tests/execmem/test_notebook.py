# SPDX-License-Identifier: GPL-2.0-or-later
"""The notebook runs from top to bottom, and what a notebook shows of our objects is well formed."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from allocator.markup import Bar, bars, table
from machine.face import Machine
from samples.modules import root

HERE = Path(__file__).parents[2]


# Jupyter's own libraries announce what they will change one day.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("path", sorted((HERE / "docs").rglob("*.ipynb")), ids=lambda p: p.stem)
def test_notebook_runs(path, monkeypatch):
    """Every cell runs without an error, and the pictures are there."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient runs notebooks")
    pytest.importorskip("ipykernel", reason="a notebook needs a Python kernel")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120).execute()
    kinds = [
        kind
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        for kind in output.get("data", {})
    ]
    assert "image/svg+xml" in kinds
    assert "text/html" in kinds


def test_objects_show_themselves(arch):
    """Module, report and page table give a notebook markup that parses and names every region."""
    machine = Machine(arch, root=root(arch.name))
    module = machine.load("mathuser")
    svg = module._repr_svg_()
    assert ET.fromstring(svg).tag.endswith("svg")
    report = ET.fromstring(module.report._repr_html_())
    assert [row[0].text for row in report.find("tbody")] == [k.name for k in module.report.regions]
    for region in module.regions.values():
        assert f"{region.address:#x}" in svg
    leaves = ET.fromstring(machine.memory.page_table._repr_html_())
    counted = sum(int(row[1].text) for row in leaves.find("tbody"))
    assert counted == sum(machine.memory.page_table.leaf_counts().values())


def test_words_are_escaped():
    """Names from a file cannot become markup."""
    assert "<b>" not in table(("a",), [("<b>",)], "<b>")
    assert "<b>" not in bars("<b>", [Bar("<b>", 0, 1, "text", "<b>")], "<b>")
