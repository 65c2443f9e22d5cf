# SPDX-License-Identifier: GPL-2.0-or-later
"""Exported modules, executed by angr, which is large and lives elsewhere: EXECMEM_ANGR names its Python."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from allocator.types import GIB, Interval
from archs import Arch
from execmem import export
from execmem.commands.common import loaded_to_read
from loader.alone import SPACING, StandIns, loader_for
from loader.loaded import LoadedModule
from loader.symbols import SymbolTable
from samples.modules import path
from tests.conftest import folders, of_arch
from tests.execmem.test_disasm import OPTIONS

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "angr.md"
# A job is a function and its arguments, of which text is a buffer; angr knows nothing of the kernel,
# so each function that is called there gets a procedure, which says that it was.
_SCRIPT = """
import json, logging, math, sys
import angr

logging.disable(logging.ERROR)

class Gcd(angr.SimProcedure):
    def run(self, a, b):
        return math.gcd(self.state.solver.eval(a), self.state.solver.eval(b))

class Said(angr.SimProcedure):
    def run(self):
        said.append(self.display_name)
        return 7

found = []
for file, function, arguments, hooks in json.load(sys.stdin):
    project = angr.Project(file, auto_load_libs=False)
    state, said, at = project.factory.blank_state(), [], 0x10000
    for name in hooks:
        procedure = Gcd() if "gcd" in name else Said(display_name=name)
        project.hook(project.loader.find_symbol(name).rebased_addr, procedure)
    values = []
    for each in arguments:
        if isinstance(each, str):
            state.memory.store(at, each.encode() + bytes(1))
            values.append(at)
            at += 0x1000
        else:
            values.append(each)
    call = project.factory.callable(
        project.loader.find_symbol(function).rebased_addr, base_state=state, concrete_only=True
    )
    result = call(*values)
    found.append([state.solver.eval(result), said])
print(json.dumps(found))
"""


@pytest.fixture
def python() -> str:
    """Return the Python that has angr, or skip."""
    found = os.environ.get("EXECMEM_ANGR", "")
    if not Path(found).is_file():
        pytest.skip("EXECMEM_ANGR names no Python with angr")
    return found


def executed(python: str, jobs: list[Any]) -> list[Any]:
    """Return what angr computes."""
    done = subprocess.run(
        [python, "-c", _SCRIPT], input=json.dumps(jobs), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def crc64(data: bytes) -> int:
    """Return CRC-64/XZ, bit by bit."""
    crc = ~0 % (1 << 64)
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xC96C5795D7870F42 if crc & 1 else 0)
    return ~crc % (1 << 64)


def far_away(arch: Arch) -> LoadedModule:
    """Return a module in memory whose kernel is a GiB farther away than calls reach on arm64."""
    loader = loader_for(arch)
    image = arch.loads.address_map(None).image
    start = image.start + GIB
    loader.symbols = SymbolTable(StandIns(Interval(start, start + 1000 * SPACING)))
    return loader.form(path(arch.name, "hello").read_bytes(), "hello.ko")


def test_angr_executes_exports(arch: Arch, python: str, tmp_path: Path) -> None:
    """Tables, jump tables, a function of another module, and one of the kernel, through a PLT entry."""
    if arch.run is None:
        pytest.skip(f"{arch.name} has no level run")
    files = {}
    for name in ("tables", "mathuser"):
        module, _ = loaded_to_read(name, {**OPTIONS, "arch": arch.name})
        files[name] = tmp_path / f"{name}.elf"
        files[name].write_bytes(export.elf(module))
    module = far_away(arch)
    through = {str(use) for use in module.linked.plt.values() if use.used}
    assert bool(through) == (arch.name == "arm64")
    files["hello"] = tmp_path / "hello.elf"
    files["hello"].write_bytes(export.elf(module))
    data = "123456789 what is exported"
    jobs = [
        [str(files["tables"]), "tables_crc64", [data, len(data)], []],
        *([str(files["tables"]), "tables_dispatch", [op, 84, 36], []] for op in (2, 7, 15)),
        [str(files["mathuser"]), "mathuser_lcm", [84, 36], ["mathlib_gcd"]],
        [str(files["hello"]), "hello_greet", ["angr"], ["_printk"]],
    ]
    results = executed(python, jobs)
    assert [value for value, _ in results[:5]] == [
        crc64(data.encode()),
        84 * 36,
        84 ^ 36,
        math.gcd(84, 36),
        math.lcm(84, 36),
    ]
    assert results[5][1] == ["_printk"]


def test_the_page_runs(arch: Arch, python: str, tmp_path: Path) -> None:
    """What the page prints of a distribution's crc16 is what it says."""
    tree = of_arch(folders("EXECMEM_CORPUS", "distribution modules"), arch)
    module, _ = loaded_to_read("crc16", {**OPTIONS, "root": str(tree), "arch": arch.name})
    (tmp_path / "crc16.elf").write_bytes(export.elf(module))
    (block,) = re.findall(r"```text\n(import angr\n.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    said = re.search(r"# (0x[0-9a-f]+)$", block, re.MULTILINE)
    assert said is not None
    done = subprocess.run(
        [python, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == [said[1]], done.stderr
