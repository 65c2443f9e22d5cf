# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem relocs` and `execmem reach`: what they print, against the file and capstone."""

from __future__ import annotations

import json
from collections import Counter
from fnmatch import fnmatchcase

import capstone
import pytest

from archs import ALL
from execmem.cli import main
from loader.elf import parse
from loader.elfview import SHT_NOBITS, STT_FUNC
from samples.modules import names, path
from tests.archs.facts import facts

KEYS = {
    "section", "offset", "place", "type", "formula", "symbol", "addend", "target", "value",
    "before", "after", "before_text", "after_text", "via",
}  # fmt: skip


@pytest.fixture
def run(capsys):
    """Run the command line; return exit code, stdout and stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        code = 0
        try:
            main([str(word) for word in words])
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def document(run, arch):
    """Return a function that gives the JSON of `relocs` for a sample module."""

    def read(name: str, *words: object) -> dict[str, object]:
        code, out, err = run("relocs", path(arch.name, name), "--json", *words)
        assert code == 0, err
        return json.loads(out)

    return read


def test_json_tells_every_relocation_of_the_file(arch, document):
    """The JSON has every record of the loaded sections, in file order, with all its keys."""
    for name in names():
        found = document(name)
        view = parse(path(arch.name, name).read_bytes())
        told = [
            (r["section"], r["offset"], r["symbol"], int(r["addend"], 0))
            for r in found["relocations"]
        ]
        loaded = {section for section, *_ in told}
        assert told == [
            (
                table.target.name,
                int(record["offset"]),
                view.symbol_name(int(record["symbol"])),
                int(record["addend"].astype("int64")),
            )
            for table in view.tables
            if table.target.name in loaded
            for record in table.records
        ]
        assert {t.target.name for t in view.tables if t.target.executable} <= loaded
        assert all(r.keys() >= KEYS for r in found["relocations"])
        assert found["matching"] == found["total"] == len(told)
        assert found["counts"] == Counter(r["type"] for r in found["relocations"])
        assert (found["module"], found["arch"]) == (name, arch.name)


def test_json_bytes_are_the_files_before_and_in_memory_after(arch, run):
    """Before is what the file has; a module loaded again has the same bytes after."""
    from machine.face import Machine

    file = path(arch.name, "tables")
    machine = Machine(arch)
    module = machine.load(file, init=False)
    view = parse(file.read_bytes())
    found = json.loads(run("relocs", file, "--json")[1])
    for one in found["relocations"]:
        size = len(bytes.fromhex(one["after"]))
        assert machine.read(int(one["place"], 0), size).hex() == one["after"]
        section = view.section(one["section"])
        assert section.type != SHT_NOBITS
        start = one["offset"]
        assert bytes(view.contents(section)[start : start + size]).hex() == one["before"]
        value, addend = int(one["symbol_value"], 0), int(one["addend"], 0)
        assert int(one["target"], 0) == (value + addend) % (1 << 64)
    assert module.state.value == "coming"


def instruction(arch, view, section, offset, code, address):
    """Return capstone's text of the instruction around `offset`."""
    emulation = arch.runs.emulation
    mode = sum(getattr(capstone, name) for name in emulation.capstone_mode)
    engine = capstone.Cs(getattr(capstone, emulation.capstone_prefix), mode)
    start = offset
    if facts(arch).link.call_code[1]:  # instructions of any length: the field is inside one
        symbols = view.symbols[view.symbols["shndx"] == section.index]
        entries = symbols["value"][symbols["info"] & 0xF == STT_FUNC]
        start = int(max(entries[entries <= offset], default=0))
    for found in engine.disasm(bytes(code[start:]), address + start):
        if found.address <= address + offset < found.address + found.size:
            return f"{found.mnemonic} {found.op_str}".strip()
    raise AssertionError(f"no instruction at {section.name}+{offset:#x}")


def test_code_is_shown_as_capstone_reads_it(arch, document):
    """The text of a relocation in code is the instruction that holds it, before and after."""
    seen = 0
    for name in ("mathuser", "sorting", "branches"):
        view = parse(path(arch.name, name).read_bytes())
        for one in document(name)["relocations"]:
            section = view.section(one["section"])
            if not section.executable or not one["after"]:
                continue
            if one["type"] == "R_AARCH64_ABS64":  # branches.ko keeps pointers behind its code
                assert int(one["after_text"], 16) == int(one["target"], 0)
                continue
            address = int(one["place"], 0) - one["offset"]
            file = bytes(view.contents(section))
            before = instruction(arch, view, section, one["offset"], file, address)
            patched = bytearray(file)
            after = bytes.fromhex(one["after"])
            patched[one["offset"] : one["offset"] + len(after)] = after
            assert one["before_text"].split("; ")[0] == before
            assert one["after_text"].split("; ")[0] == instruction(
                arch, view, section, one["offset"], patched, address
            )
            seen += 1
    assert seen > 10


def test_a_call_is_shown_with_its_target(arch, document):
    """Disassembled in the end, a call of a kernel function names its address."""
    call = next(r for r in document("hello", "--symbol", "_printk")["relocations"])
    assert call["via"] is None
    if call["after_text"].startswith("lui"):  # the upper half of an address
        upper = int(call["after_text"].rsplit(", ", 1)[1], 0)
        assert upper == int(call["symbol_value"], 0) + 0x8000 >> 16 & 0xFFFF
    elif "jalr" in call["after_text"]:
        high, low = (int(text.rsplit(", ", 1)[1], 0) for text in call["after_text"].split("; "))
        led = int(call["place"], 0) + signed20(high) * 4096 + low
        assert f"{led % (1 << 64):#x}" == call["symbol_value"]
    else:
        assert call["symbol_value"] in call["after_text"]
    assert call["symbol_value"] not in call["before_text"]


def signed20(field: int) -> int:
    """Return a 20-bit field as a signed number."""
    return field - (1 << 20) if field >> 19 else field


def test_data_is_shown_as_words(arch, document):
    """A relocation in data shows the little-endian word: of a pointer, the address itself."""
    pointers = document("hello", "--section", ".gnu.linkonce.this_module")["relocations"]
    assert len(pointers) == 2
    for one in pointers:
        assert one["before_text"] == "0x" + 16 * "0"
        assert int(one["after_text"], 16) == int(one["target"], 0)
        assert one["value"] == one["target"]


@pytest.mark.parametrize(
    ("option", "key", "pattern"),
    [
        ("--section", "section", ".init*"),
        ("--section", "section", ".text"),
        ("--type", "type", "R_*_[CP]*"),
        ("--symbol", "symbol", "_printk"),
        ("--symbol", "symbol", "*[ai]*"),
        ("--symbol", "symbol", "nonesuch"),
    ],
)
def test_filters(document, option, key, pattern):
    """Each filter keeps exactly what its pattern matches."""
    everything = document("mathuser")
    found = document("mathuser", option, pattern)
    wanted = [r for r in everything["relocations"] if fnmatchcase(r[key], pattern)]
    assert found["relocations"] == wanted
    assert (found["matching"], found["total"]) == (len(wanted), everything["total"])


def test_limit(document, run, arch):
    """--limit shows so many and counts the others."""
    everything = document("mathuser")
    for limit in (0, 1, 3, 10_000):
        found = document("mathuser", "--limit", limit)
        assert found["relocations"] == everything["relocations"][:limit]
        assert found["counts"] == everything["counts"]
    _, out, _ = run("relocs", path(arch.name, "mathuser"), "--limit", "2")
    assert f"2 shown of {everything['total']} that match, {everything['total']} in" in out


def test_types_may_be_named_without_their_prefix(document):
    """`--type abs64` and the like find the type by the end of its name, in any case."""
    everything = document("mathuser")
    for full in everything["counts"]:
        prefix = next(
            p for p in ("R_X86_64_", "R_AARCH64_", "R_RISCV_", "R_MIPS_") if full.startswith(p)
        )
        short = full.removeprefix(prefix).lower()
        assert document("mathuser", "--type", short)["counts"] == {full: everything["counts"][full]}


def test_text_says_what_json_says_within_80_columns(run, document, arch):
    """Place, type, symbol, numbers, instructions and counts stand in the text, narrow enough."""
    for name in ("mathuser", "hello", "tables"):
        code, out, _ = run("relocs", path(arch.name, name))
        found = document(name)
        assert code == 0
        assert max(map(len, out.splitlines())) <= 80
        flat = "".join(out.split())
        for one in found["relocations"]:
            assert f"{one['section']}+{one['offset']:#x}" in out
            assert f"{one['type']} against {one['symbol']}" in out
            for text in (one["computation"], one["before_text"], one["after_text"]):
                assert "".join(text.split()) in flat
        for kind, count in found["counts"].items():
            assert f"{kind}" in out
            assert f" {count}\n" in out


def test_bad_input_is_refused(run, arch, tmp_path):
    """Types and sections that cannot match are usage errors; a bad file is refused in one line."""
    module = path(arch.name, "hello")
    code, out, err = run("relocs", module, "--type", "R_VAX_32")
    assert (code, out) == (2, "")
    assert "R_VAX_32" in err
    code, out, err = run("relocs", module, "--section", ".nonesuch")
    assert (code, out) == (2, "")
    assert ".nonesuch" in err
    assert ".text" in err
    assert run("relocs")[0] == 2
    assert run("relocs", module, "--limit", "-1")[0] == 2
    bad = tmp_path / "bad.ko"
    bad.write_bytes(module.read_bytes()[:200])
    code, out, err = run("relocs", bad)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "truncated" in err


def test_relocs_is_deterministic_and_follows_kaslr(document):
    """The same seed gives the same kernel, another one another."""
    first, again, other = (document("hello", "--kaslr", seed) for seed in (1, 1, 2))
    assert first == again
    assert [r["target"] for r in first["relocations"]] != [
        r["target"] for r in other["relocations"]
    ]


def test_reach_json(run):
    """`reach` has a row for every instruction of every record: the psABI's limits and measured ones."""
    code, out, _ = run("reach", "--json")
    rows = json.loads(out)["rows"]
    assert code == 0
    assert [(r["arch"], r["instruction"], r["lo"], r["hi"]) for r in rows] == [
        (a.name, b.mnemonic, hex(b.reach.lo), hex(b.reach.hi)) for a in ALL for b in a.link.branches
    ]
    for row in rows:
        assert row["measured"] == [row["lo"], row["hi"]]
        assert row["lands_past_hi"] == row["lo"]
        assert int(row["lands_past_lo"], 0) == int(row["hi"], 0) - row["step"]


def test_reach_table(run, arch):
    """The table names each instruction with both intervals, of the architectures asked for."""
    code, out, _ = run("reach", "--arch", arch.name)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    for branch in arch.link.branches:
        line = next(n for n, text in enumerate(out.splitlines()) if f" {branch.mnemonic} " in text)
        here, below = out.splitlines()[line : line + 2]
        assert f"psABI    {branch.reach}" in here
        assert f"measured {branch.reach}" in below
        assert f"{branch.reach.hi - branch.reach.lo:#x}" in below
    for other in ALL:
        assert (other.title in out) is (other is arch)
    code, _, err = run("reach", "--arch", "vax")
    assert code == 2
    assert "vax" in err
