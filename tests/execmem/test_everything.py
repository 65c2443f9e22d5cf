# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem load --all`: a whole tree in one guest."""

from __future__ import annotations

import json
import shutil

import pytest

from allocator import DESIGNS
from execmem.cli import main
from execmem.everything import load_all
from loader.depends import open_tree
from machine.face import Machine
from samples.modules import names, root


@pytest.mark.parametrize("design", DESIGNS)
def test_all_modules_are_in_one_guest(arch, design):
    """Every module of the tree is loaded once, and the sums are those of the modules."""
    machine = Machine(arch, root=root(arch.name), design=design)
    told = []
    whole = load_all(machine, names(), after_each=lambda: told.append(None))
    assert len(told) == len(names())
    assert set(machine.modules) == set(names())
    found = whole.as_json()
    machine.check()
    assert (found["modules"], found["refused"], found["errors"]) == (len(names()), 0, [])
    for name, reach in found["relocations"].items():
        each = [m.report.relocations.get(name, 0) for m in machine.modules.values()]
        assert reach["count"] == sum(each)
        row = whole.reached[name].row
        if row.reach is not None and not row.stub:
            assert row.reach.lo <= reach["lo"] <= reach["hi"] < row.reach.hi
    lo, hi = found["text"]
    places = [m.symbols[f] for m in machine.modules.values() for f in m.symbols if "_gcd" in f]
    assert places
    assert all(lo <= place < hi for place in places)
    assert found["guest_bytes"] >= sum(found["bytes"].values()) > 0
    assert found["plt_slots"] == sum(m.report.plt_slots for m in machine.modules.values())


def test_a_refused_module_is_counted_and_the_others_go_on(tmp_path):
    """Errors of a kind are one entry; what is refused leaves no trace."""
    tree = shutil.copytree(root("x86_64"), tmp_path / "tree")
    for name in ("hello", "tables"):
        next(tree.glob(f"lib/modules/*/kernel/{name}.ko")).write_bytes(b"no module")
    machine = Machine("x86_64", root=tree)
    found = load_all(machine, sorted(open_tree(tree).files), init=True).as_json()
    kinds = {each["error"]: each["count"] for each in found["errors"]}
    assert sorted(kinds.values()) == [1, 2], "two damaged files, and failing"
    assert found["modules"] + found["refused"] == len(names())


def test_the_command(capsys):
    """A run per design, as tables and as JSON; `all` is every design that can work."""
    tree = str(root("riscv64"))

    def run(*words):
        with pytest.raises(SystemExit) as done:
            main(["load", *words])
        return (done.value.code or 0), capsys.readouterr()

    code, text = run("--all", "--root", tree, "--design", "default,vmalloc", "--json")
    runs = json.loads(text.out)["runs"]
    assert code == 0
    assert [(r["design"], r["modules"]) for r in runs] == [
        ("strata", len(names())),
        ("vmalloc", len(names())),
    ]
    code, text = run("--all", "--root", tree, "--design", "all", "--json")
    assert [r["design"] for r in json.loads(text.out)["runs"]] == list(DESIGNS)
    code, text = run("--all", "--root", tree)
    assert f"design strata: {len(names())} modules" in text.out
    assert "R_RISCV_PCREL_HI20" in text.out
    for words in ((), ("--all",), ("--all", "hello", "--root", tree)):
        assert run(*words)[0] == 2
    assert run("--all", "--root", tree, "--design", "nonesuch")[0] == 2
