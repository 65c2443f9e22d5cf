# SPDX-License-Identifier: GPL-2.0-or-later
"""Sweeps: a row for every module, whatever the module does, in the order of the modules."""

from __future__ import annotations

import json
import shutil

import pytest

from allocator.errors import ExecmemError
from execmem.cli import main
from execmem.sweep import Options, examine, modules_under, sweep
from loader.elf import parse
from loader.files import module_name
from samples import modules
from tests.machine.snippets import code
from tests.support.modules import module
from tests.support.poison import poisoned

SAMPLES = modules.root("x86_64").parent


def without_seconds(rows):
    """Return rows without what differs from run to run."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_every_sample_has_its_row():
    """Two sweeps give the same rows, in the order of the files, and what `load` would give."""
    files = list(modules_under([SAMPLES / "arm64", next(SAMPLES.glob("x86_64/**/hello.ko"))]))
    rows = list(sweep(files, Options(init=True), jobs=2))
    assert [row["module"] for row in rows] == [module_name(path.name) for path in files]
    for row in rows:
        expected = "init-error" if row["module"] == "failing" else "init-ok"
        assert row["outcome"] == expected, row
        assert row["arch"] in row["file"]
        assert row["relocations"] > 0 or expected == "init-error"
    assert without_seconds(rows) == without_seconds(sweep(files, Options(init=True), jobs=1))


def test_a_poisoned_module_costs_its_own_row(tmp_path):
    """Workers that die or hang are replaced; the modules around them are done all the same."""
    names = ["a", "crashes", "exits", "hangs", "z"]
    sample = next(SAMPLES.glob("arm64/lib/modules/*/kernel/mathlib.ko"))
    for name in names:
        shutil.copy(sample, tmp_path / f"{name}.ko")
    options = Options(seconds=1.0, grace=6.0)
    rows = list(sweep(modules_under([tmp_path]), options, 1, poisoned))
    assert [row["module"] for row in rows] == ["mathlib", *names[1:4], "mathlib"]
    assert [row["outcome"] for row in rows] == ["ok", "fault", "fault", "fault", "ok"]
    assert "exit code -11" in rows[1]["error"]
    assert "exit code 7" in rows[2]["error"]
    assert rows[3]["error"] == "no answer within 7 seconds"


def test_what_is_no_module_is_refused(tmp_path):
    """Files that cannot be read as modules are refused with the reason."""
    (tmp_path / "text.ko").write_text("not a module")
    (tmp_path / "empty.ko.xz").write_bytes(b"")
    (tmp_path / "ignored.txt").write_text("no module's name")
    rows = list(sweep(modules_under([tmp_path]), Options()))
    assert [(row["module"], row["outcome"], row["arch"]) for row in rows] == [
        ("empty", "refused", None),
        ("text", "refused", None),
    ]
    assert all(row["error"] for row in rows)
    with pytest.raises(ExecmemError, match="no such file or folder"):
        list(modules_under([tmp_path / "nowhere"]))


def test_an_endless_init_is_a_fault(arch, tmp_path):
    """An init that does not end stops at its time."""
    image = bytearray(module(arch.machine))
    view = parse(bytes(image), "spins")
    section, body = view.section(".init.text"), code(arch, "spin")
    image[section.offset : section.offset + len(body)] = body  # instead of the module's init
    for table in view.tables:
        if table.target.name == ".init.text":  # and no relocation there: all R_*_NONE
            at, size = table.section.offset, table.section.size
            image[at : at + size] = bytes(size)
    path = tmp_path / "spins.ko"
    path.write_bytes(bytes(image))
    row = examine(path, Options(init=True, seconds=0.2))
    assert row["outcome"] == "fault"
    assert "0.2 seconds" in row["error"]


def test_the_command(capsys):
    """JSON lines end with the summary; the table with its counts; unknown paths are refused."""
    folder = str(SAMPLES / "riscv64")
    with pytest.raises(SystemExit) as done:
        main(["sweep", folder, "--init", "--json", "--jobs", "2"])
    assert not done.value.code
    *rows, last = map(json.loads, capsys.readouterr().out.splitlines())
    keys = {"arch", "module", "outcome", "error", "relocations", "seconds"}
    assert all(keys <= set(row) for row in rows)
    summary = last["summary"]
    assert summary["modules"] == len(rows) == sum(summary["outcomes"].values())
    assert summary["outcomes"]["init-error"] == 1
    assert summary["archs"] == {"riscv64": len(rows)}
    assert summary["relocations"] == sum(row["relocations"] for row in rows)
    with pytest.raises(SystemExit):
        main(["sweep", folder])
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == f"summary: {len(rows)} modules: {len(rows)} ok"
    assert out[0].split() == ["riscv64", "ok", "branches"]
    with pytest.raises(SystemExit) as refused:
        main(["sweep", "/nonexistent"])
    assert refused.value.code == 1
    assert capsys.readouterr().err == "execmem: /nonexistent: no such file or folder\n"
