# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem functions` and `execmem types`, beside what pahole reads from the same types."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from execmem import declared
from execmem.cli import main
from loader import declarations
from loader.btf_records import Kind
from loader.kernel.find import read_kernel
from tests.support import booted

KERNELS = booted.some()
STRUCTURES = (
    "file",
    "task_struct",
    "device",
    "net_device",
    "inode",
    "page",
    "list_head",
    "sk_buff",
)
_MEMBER = re.compile(r"^\s+(.*?)\s*;?\s*/\*\s*(\d+)(?::\s*(\d+))?\s+(\d+)\s*\*/")


@pytest.fixture(params=KERNELS, ids=[name for name, _, _ in KERNELS])
def kernel(request: pytest.FixtureRequest) -> Path:
    """Return the folder of each kernel that is at hand."""
    folder: Path = request.param[1]
    return folder


def output(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Return the exit code, and what a command line prints."""
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    printed = capsys.readouterr()
    return int(caught.value.code or 0), printed.out, printed.err


def pahole(blob: bytes, folder: Path, name: str) -> list[tuple[str, int, int]]:
    """Return the last word of each member, its first bit and bytes, as pahole has them."""
    program = shutil.which("pahole")
    if program is None:
        pytest.skip("pahole is not installed")
    (folder / "types").write_bytes(blob)
    done = subprocess.run(
        [program, "-F", "btf", "-C", name, "types"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or "struct" not in done.stdout:
        pytest.skip(f"pahole does not read them: {done.stderr[:100]}")
    found = []
    for line in done.stdout.splitlines():
        member = _MEMBER.match(line)
        if member and "size:" not in line:
            words = re.findall(r"\w+", member[1].split(":")[0].split("__attribute__")[0])
            bit = 8 * int(member[2]) + int(member[3] or 0)
            found.append((words[-1] if words else "}", bit, int(member[4])))
    return found


def test_structures_are_as_pahole_has_them(kernel: Path, tmp_path: Path) -> None:
    """Offsets and sizes of every member that both show."""
    image = read_kernel(kernel)
    blob = image.btf_blob()
    assert image.btf is not None
    assert blob is not None
    compared = 0
    for name in STRUCTURES:
        found = image.btf.find(name, Kind.STRUCT)
        assert found is not None
        theirs = {(n, at, size) for n, at, size in pahole(blob, tmp_path, name)}
        ours = {
            (
                re.findall(r"\w+", line.text.split(":")[0])[-1],
                8 * line.offset + line.shift,
                line.size,
            )
            for line in declarations.lines(image.btf, found.number)
            if line.offset is not None and re.fullmatch(r"[\w *]+(: \d+)?;", line.text)
        }
        assert ours <= theirs, (name, sorted(ours - theirs)[:5])
        compared += len(ours)
    assert compared > 300


def test_the_commands(kernel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines, JSON, patterns; what there is not is told."""
    path = str(kernel)
    code, out, _ = output(capsys, "types", path, "list_head", "list_*")
    assert code == 0
    assert out.splitlines()[0] == "struct list_head {"
    assert re.search(r"struct list_head \*next; +/\* +0x0 +0x8 \*/", out)
    assert "list_head" in out.splitlines()[4:]
    code, out, _ = output(capsys, "types", path, "struct list_head", "--json")
    (found,) = json.loads(out)["types"]
    assert found["size"] == 16
    assert [m["offset"] for m in found["members"]] == [0, 8]
    code, _, err = output(capsys, "types", path, "no_such_thing")
    assert (code, "there is no no_such_thing" in err) == (1, True)
    code, out, _ = output(capsys, "functions", path, "kstrtoint")
    assert code == 0
    assert out.rstrip().endswith("int kstrtoint(const char *s, unsigned int base, int *res)")
    code, out, _ = output(capsys, "functions", path, "kstrto*", "--json")
    rows = json.loads(out)["functions"]
    assert {row["name"] for row in rows} >= {"kstrtoint", "kstrtoull"}
    symbols = read_kernel(kernel).symbols
    assert all(int(row["address"], 16) == symbols[row["name"]] for row in rows)


def test_functions_of_a_module(kernel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Places by section; prototypes with its kernel, and without it what would make them known."""
    module = next(iter(sorted(kernel.rglob("crc16.ko*"))), None)
    if module is None:
        pytest.skip("no crc16 there")
    code, out, err = output(capsys, "functions", str(module))
    assert code == 0
    assert "crc16(?)" in out
    assert "--kernel" in err
    of = declared.source(str(module), str(kernel))
    rows = list(declared.functions(of, "crc16"))
    assert [row["section"] for row in rows] == [".text"]
    if of.types is not None:
        assert "u16 crc" in rows[0]["prototype"]
