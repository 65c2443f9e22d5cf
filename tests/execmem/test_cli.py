# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import itertools
import json
import lzma
import shutil
import zlib

import click
import pytest

from archs import ALL
from execmem.cli import COMMANDS, cli, main
from samples import DEMOS
from samples.modules import names, path, root
from tests.support.modules import module


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


def refused(result: tuple[int, str, str], *words: str) -> str:
    """Check that a command was refused with one line that holds `words`; return the line."""
    code, out, err = result
    assert (code, out) == (1, "")
    assert err.startswith("execmem: ")
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err
    return err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("run", ()),
        ("load", ("--init",)),
        ("explain", ("--html", "page.html")),
        ("crypto", ("str:x", "--module")),
        ("trace", ("mini", "--", "mini_work")),
        ("probe", ("mini", "--", "mini_work")),
    ],
)
def test_limits_hold_for_whatever_a_command_runs(run, arch, tmp_path, monkeypatch, command, words):
    """An init that never returns ends at --instructions or --seconds, and the line says how to go on."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini.ko").write_bytes(module(arch.machine, spins="init", undefined=()))
    for option, value, kind in (
        ("--instructions", 1000, "instruction limit reached: 1000 instructions"),
        ("--seconds", 0.1, "time limit reached: 0.1 seconds"),
    ):
        target = "./mini.ko"
        if command == "crypto":
            given = ("md4", *words, target)
        elif command in ("trace", "probe"):
            given = (f"{target}:mini_work", *words[1:])
            given = (given[0], option, value, *given[1:])
        else:
            given = (target, *words)
        more = () if command in ("trace", "probe") else (option, value)
        line = refused(run(command, *given, *more), kind, "hint: raise it with " + option)
        assert "Machine." in line


def test_load_json_has_the_keys_that_scripts_rely_on(run, arch):
    """Load's JSON names modules, regions, sections, relocations and PLT slots."""
    code, out, _ = run("load", path(arch.name, "mathuser"), "--json")
    document = json.loads(out)
    assert code == 0
    assert [m["name"] for m in document["modules"]] == ["mathlib", "mathuser"]
    module = document["modules"][1]
    assert module["arch"] == arch.name
    assert module["plt_slots"] == 0
    assert {r["type"] for r in module["regions"]} >= {"TEXT", "DATA", "INIT_TEXT"}
    assert sum(module["relocations"].values()) > 0
    for section in module["sections"]:
        assert {"index", "name", "type", "address", "size"} <= section.keys()
        holder = next((r for r in module["regions"] if r["type"] == section["type"]), None)
        if holder and section["size"]:
            start, first = (int(part["address"], 0) for part in (section, holder))
            assert first <= start
            assert start + section["size"] <= first + holder["size"]


def test_load_shows_a_table_of_at_most_80_columns(run, arch):
    """Results are readable at 80 columns and carry no escape codes when they are no terminal."""
    for name in names():
        code, out, _ = run("load", path(arch.name, name))
        assert code == 0
        assert "\x1b" not in out
        assert max(map(len, out.splitlines())) <= 80
        assert ".text" in out


def test_load_does_not_run_init_unless_asked(run, arch):
    """`load` leaves a module COMING; with --init it is LIVE and its init text is freed."""
    module = path(arch.name, "hello")
    _, before, _ = run("load", module, "--json")
    _, after, _ = run("load", module, "--init", "--json")
    assert json.loads(before)["modules"][0]["state"] == "coming"
    live = json.loads(after)["modules"][0]
    assert live["state"] == "live"
    assert {r["prot"] for r in live["regions"] if r["type"] == "INIT_TEXT"} == {"freed"}
    assert live["log"] == ["hello: Hello, world!"]


def test_run_init_shows_the_kernel_log(run, arch):
    """`run MODULE` runs init with its parameters and shows what it printed."""
    words = ("--param", "who=you", "--param", "times=2")
    code, out, _ = run("run", path(arch.name, "hello"), *words)
    assert code == 0
    assert out.splitlines() == ["hello: Hello, you!"] * 2 + ["hello: init returned 0"]


def test_run_calls_a_function(run, arch, tmp_path):
    """Integers, str:, hex: and file: arguments reach the function; the result is shown."""
    data = b"123456789"
    file = tmp_path / "data"
    file.write_bytes(data)
    expected = zlib.crc32(data)
    for word in ("str:123456789", f"hex:{data.hex()}", f"file:{file}"):
        code, out, _ = run(
            "run", path(arch.name, "checksums"), "checksums_crc32", word, "9", "0",
            "--returns", "u32",
        )  # fmt: skip
        assert code == 0
        assert out == f"checksums_crc32 = {expected:#x} ({expected})\n"


def test_run_out_buffer_is_shown(run, arch):
    """An out: argument is printed after the call, in JSON too."""
    words = ("run", path(arch.name, "logbook"), "logbook_render", "out:8", "8")
    code, out, _ = run(*words)
    assert code == 0
    assert "out: " in out
    document = json.loads(run(*words, "--json")[1])
    assert len(bytes.fromhex(document["outputs"][0])) == 8
    assert document["function"] == "logbook_render"


def test_failed_init_is_one_line(run, arch):
    """A module whose init fails exits 1 and names the errno."""
    refused(run("run", path(arch.name, "failing")), "failing", "-22", "EINVAL")
    code, out, _ = run("run", path(arch.name, "failing"), "--param", "error=0")
    assert code == 0
    assert "init returned 0" in out


@pytest.mark.parametrize("command", ["load", "run"])
def test_bad_files_are_refused_in_one_line(run, tmp_path, arch, command):
    """Whatever is wrong with the file: exit 1 and one line that says where and what."""
    good = path(arch.name, "hello").read_bytes()
    turned = good[16:18][::-1] + good[18:20][::-1]  # type and machine
    cases = {
        "not-elf.ko": (b"#!/bin/sh\n" * 20, "not an ELF file"),
        "empty.ko": (b"", "not an ELF file"),
        "short.ko": (good[:40], "truncated"),
        "cut.ko": (good[: len(good) // 2], "truncated"),
        "machine.ko": (good[:18] + b"\x02\x00" + good[20:], "machine 2"),
        "big.ko": (good[:5] + b"\x02" + good[6:16] + turned + good[20:], "ELF64 big-endian"),
        "narrow.ko": (good[:4] + b"\x01" + good[5:], "ELF32"),
        "exec.ko": (good[:16] + b"\x02\x00" + good[18:], "ET_EXEC"),
        "damaged.ko.xz": (lzma.compress(good)[:-40], "truncated"),
    }
    for name, (contents, reason) in cases.items():
        file = tmp_path / name
        file.write_bytes(contents)
        extra = () if "machine" not in name and "big" not in name else ("--arch", arch.name)
        refused(run(command, file, *extra), name, reason)
    refused(run(command, tmp_path / "missing.ko"), "missing.ko", "No such file")


def test_missing_dependency_is_named_with_its_symbols(run, tmp_path, arch):
    """Without its tree a module's dependency is missing, and what it would have provided is named."""
    lonely = tmp_path / "mathuser.ko"
    lonely.write_bytes(path(arch.name, "mathuser").read_bytes())
    line = refused(run("load", lonely), "mathlib", "mathlib_gcd", "mathlib_powmod", "--root")
    assert "missing dependency" in line


@pytest.mark.parametrize(
    "words",
    ["load NAME", "run NAME", "relocs NAME", "explain NAME --html page.html", "load NAME mathlib"],
)
def test_a_samples_name_needs_no_root(run, words, arch, tmp_path, monkeypatch):
    """A sample module's name works wherever a module's does; without --arch, which is said."""
    monkeypatch.chdir(tmp_path)
    given = words.replace("NAME", "mathuser").split()
    code, out, err = run(*given, "--arch", arch.name)
    assert (code, err) == (0, "")
    assert out
    code, _, err = run(*given)
    assert code == 0
    if "explain" not in words:  # which shows every architecture
        assert (
            err
            == "execmem: notice: mathuser: the sample module, for x86_64 (--arch ARCH: another)\n"
        )
        if "load" in words:
            told = json.loads(run(*given, "--json")[1])["notices"]
            assert told == ["mathuser: the sample module, for x86_64 (--arch ARCH: another)"]
    line = refused(run(*words.replace("NAME", "mathusr").split()), "did you mean mathuser?")
    assert line.startswith("execmem: no module mathusr in the samples")


def test_a_sample_may_follow_a_file_and_a_file_a_sample(run, tmp_path, arch):
    """The second module may be a sample's name or a file, whatever the first was."""
    file = tmp_path / "mine.ko"
    file.write_bytes(path(arch.name, "hello").read_bytes())
    for first in ((file, "mathuser"), ("mathuser", file, "--arch", arch.name)):
        code, out, _ = run("load", *first, "--json")
        assert code == 0
        names = {module["name"] for module in json.loads(out)["modules"]}
        assert names == {"hello", "mathlib", "mathuser"}


@pytest.mark.parametrize("where", [".", "usr"])
def test_a_tree_without_an_index_is_used_and_said(run, tmp_path, arch, where):
    """Where there is no modules.dep the modules are asked, and a line says so."""
    kernel, base = path(arch.name, "hello").parent, tmp_path / where
    folder = base / "lib" / "modules" / "6.12.0"
    shutil.copytree(kernel, folder / "kernel")
    code, out, err = run("load", "mathuser", "--root", tmp_path, "--json")
    assert code == 0
    assert [module["name"] for module in json.loads(out)["modules"]] == ["mathlib", "mathuser"]
    wanted = f"no modules.dep: asking the modules (depmod -b {base} 6.12.0 writes it)"
    assert err == f"execmem: notice: {folder}: {wanted}\n"
    assert json.loads(out)["notices"] == [f"{folder}: {wanted}"]
    code, _, err = run("load", "mathuser", "--root", kernel)
    assert (code, err) == (0, f"execmem: notice: {kernel}: no modules.dep: asking the modules\n")


def test_unresolved_symbols_are_all_named(run, tmp_path, arch):
    """`load` names every symbol that nobody has; `--unknown fault` and `--stub` accept them."""
    image = path(arch.name, "logbook").read_bytes()
    image = image.replace(b"\0mutex_lock\0", b"\0mutex_lokk\0")
    image = image.replace(b"\0_printk\0", b"\0_prixxk\0").replace(b"\0kfree\0", b"\0kfroo\0")
    file = tmp_path / "logbook.ko"
    file.write_bytes(image)
    found = [n for n in ("_prixxk", "kfroo", "mutex_lokk") if n.encode() in image]
    assert len(found) >= 2
    refused(run("load", file), "unresolved", *found)
    assert run("load", file, "--unknown", "fault")[0] == 0
    words = [w for name in found for w in ("--stub", f"{name}=1")]
    assert run("load", file, *words)[0] == 0


def test_unknown_function_and_bad_arguments(run, arch):
    """Unknown functions are refused with what is like them; bad words are usage errors."""
    module = path(arch.name, "hello")
    refused(run("run", module, "hello_gret"), "hello_gret", "hello_greet")
    code, _, err = run("run", module, "hello_greet", "many")
    assert code == 2
    assert "many" in err
    assert run("run", module, "hello_greet", "hex:0g")[0] == 2
    assert run("run", module, "hello_greet", "file:/nonexistent/file")[0] == 2
    refused(run("run", module, "--param", "nosuch=1"), "nosuch", "who")
    refused(run("run", module, "--param", "times=abc"), "times", "abc", "EINVAL")
    assert run("load")[0] == 2
    assert run("load", module, "--arch", "vax")[0] == 2
    code, out, err = run("load", module, "--design", "nonesuch")
    assert (code, out) == (2, "")
    assert "nonesuch" in err
    assert "per_type" in err


def test_wrong_architecture_is_refused(run):
    """A module of another architecture than the one asked for is refused by name."""
    for first, second in itertools.pairwise(ALL):
        line = refused(run("load", path(first.name, "hello"), "--arch", second.name))
        assert first.name in line
        assert second.name in line


def test_modules_by_name_under_root(run, arch):
    """A name is looked up under --root, with its dependencies; an unknown one is refused."""
    code, out, _ = run("run", "mathuser", "mathuser_lcm", "21", "6", "--root", root(arch.name))
    assert code == 0
    assert out.splitlines()[-1] == "mathuser_lcm = 0x2a (42)"
    refused(run("load", "nosuch", "--root", root(arch.name)), "nosuch")
    refused(run("load", "nosuch"), "--root")


def test_limits_stop_a_call(run, arch):
    """--instructions stops a call that runs longer, naming the function."""
    words = ("tables_crc64", "str:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "37")
    module = path(arch.name, "tables")
    words = (*words, "--no-init", "--instructions", "20")
    refused(run("run", module, *words), "20 instructions", "tables_crc64")
    assert run("run", module, *words, "--instructions", "0", "--seconds", "0")[0] == 0


def test_archs_shows_every_architecture(run):
    """`archs` has a column per architecture; its JSON has the numbers."""
    code, out, _ = run("archs")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    document = json.loads(run("archs", "--json")[1])
    assert [a["name"] for a in document["archs"]] == [a.name for a in ALL]
    for record, shown in zip(ALL, document["archs"], strict=True):
        assert record.title in out
        for branch in shown["branches"]:
            assert branch["mnemonic"] in out


def test_demos_are_listed(run):
    """`demo` lists name and title of each; tests/samples/test_demos.py runs them."""
    listing = json.loads(run("demo", "--json")[1])["demos"]
    assert [d["name"] for d in listing] == list(DEMOS)
    assert all(d["title"] for d in listing)
    assert run("demo", "nonesuch")[0] == 2


def test_every_command_has_help_and_examples(run):
    """Every command says what it does and ends with two examples."""
    for name, command in cli.commands.items():
        code, out, _ = run(name, "--help")
        assert code == 0
        assert command.help
        assert out.count(f"execmem {name}") >= 2


def test_output_is_deterministic(run, arch):
    """Same input, same bytes."""
    words = ("load", path(arch.name, "tables"), "--json", "--kaslr", "7")
    assert run(*words) == run(*words)


def test_the_heap_has_a_limit_that_can_be_raised(run, arch):
    """`--heap-limit` bounds what a guest may allocate; the default is enough for a buffer."""
    words = ("run", "checksums", "checksums_crc32", "out:3145728", "9", "0", "--arch", arch.name)
    assert run(*words)[0] == 0
    code, _, errors = run(*words, "--heap-limit", "2")
    said = "alloc: no 0x300000 bytes of guest memory; hint: its limit is 2 MiB"
    assert (code, said in errors) == (1, True), errors
    assert run(*words, "--heap-limit", "0")[0] == 2


def test_a_seed_is_what_two_runs_differ_by(run, arch, tmp_path):
    """Random numbers of the guest are those of `--seed`: equal in equal runs, 0 by default."""
    file = tmp_path / "mini.ko"
    file.write_bytes(module(arch.machine, undefined=("get_random_u64",), runs=True))

    def numbers(*words):
        code, out, err = run("run", "--no-init", file, "mini_work", "--json", *words)
        assert code == 0, err
        return json.loads(out)["result"]

    assert numbers() == numbers("--seed", "0")
    assert numbers("--seed", "1") == numbers("--seed", "1")
    assert len({numbers("--seed", n) for n in (0, 1, 1 << 70)}) == 3


def test_every_listed_command_exists_under_its_own_name():
    """The overview is written without importing commands, so it must not list what is not there."""
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert command.name == name


@pytest.mark.parametrize("size", [256, 257])
def test_large_buffers_are_shortened_for_people(run, size):
    """Up to 256 bytes of an out: buffer are shown whole; of more the beginning and the size."""
    code, out, _ = run(
        "run", path("x86_64", "checksums"), "checksums_crc32", f"out:{size}", size, 0
    )
    assert code == 0
    shown = next(line for line in out.splitlines() if line.startswith("out: ")).removeprefix(
        "out: "
    )
    assert shown.startswith("00" * 256)
    assert (f"({size} bytes; --json shows all)" in shown) is (size > 256)
