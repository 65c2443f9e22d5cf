# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever the operating system refuses is one line and exit code 1, never a traceback."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from execmem import cli
from execmem.cli import COMMANDS, main
from samples.modules import path, root

HERE = Path(__file__).parents[2]
HELLO = path("x86_64", "hello")
FULL = Path("/dev/full")
CASE = next(iter(sorted((HERE / "tests" / "cases" / "rows" / "x86_64").glob("*.case"))))
WORDS = ["gdb", path("x86_64", "mathuser"), "mathuser_lcm", "21", "6", "--batch", "/dev/null"]
GDB = {} if shutil.which("gdb-multiarch") is None else {"gdb": WORDS}
WRITING = {
    "load": ["load", HELLO],
    "load --json": ["load", HELLO, "--json"],
    "run": ["run", HELLO],
    "trace": ["trace", path("x86_64", "patchable"), "--", "patchable_fib", "3"],
    "probe": ["probe", f"{path('x86_64', 'patchable')}:patchable_fib", "--", "patchable_fib", "3"],
    "relocs": ["relocs", HELLO],
    "coverage": ["coverage", HELLO],
    "archs": ["archs"],
    "reach": ["reach", "--arch", "x86_64", "--json"],
    "compare": ["compare", "--workload", "probes", "--design", "default"],
    "race": ["race", "unsorted"],
    "fuzz": ["fuzz", path("x86_64", "notes"), "--device", "notes", "--executions", "20"],
    "sweep": ["sweep", HELLO, "--jobs", "1"],
    "demo": ["demo"],
    "course": ["course"],
    "disasm": ["disasm", path("x86_64", "mathuser"), "mathuser_lcm"],
    "functions": ["functions", HELLO],
    "check": ["check", CASE, "--linker", "none", "--jobs", "1"],
    **GDB,
    "--help": ["--help"],
    "--version": ["--version"],
}


def execmem(*words, **streams):
    """Run the command line as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "execmem", *map(str, words)],
        cwd=HERE,
        text=True,
        check=False,
        timeout=300,
        stdin=subprocess.DEVNULL,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
    )


def refused(done, *words):
    """Check that a process ended with one line, and exit code 1."""
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("execmem: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


@pytest.fixture
def run(capsys):
    """Run the command line here; return exit code, stdout and stderr."""

    def call(*words):
        with pytest.raises(SystemExit) as done:
            main(list(map(str, words)))
        return (done.value.code or 0, *capsys.readouterr())

    return call


# Standard streams -----------------------------------------------------------------------------


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", WRITING.values(), ids=WRITING)
def test_a_full_stdout_is_one_line(words):
    """What stdout does not take is said, whatever the command and however much it writes."""
    with FULL.open("w") as full:
        refused(execmem(*words, stdout=full), "standard output: No space left on device")


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_full_stderr_does_not_change_how_a_command_ends(tmp_path):
    """Nobody hears the reason, but there is one, and the exit code says so."""
    with FULL.open("w") as full:
        assert execmem("load", tmp_path / "missing.ko", stderr=full).returncode == 1
        assert execmem("load", "--nonesuch", stderr=full).returncode == 2
        done = execmem("load", HELLO, stderr=full)
    assert done.returncode == 0
    assert ".text" in done.stdout


def closing(descriptor):
    """Return what a process does before it starts: close one of its streams."""
    return lambda: os.close(descriptor)


def test_a_closed_stdout_is_one_line():
    """With no stdout at all there is nowhere to write to."""
    for words in (["load", HELLO], ["archs"], ["--help"]):
        refused(execmem(*words, preexec_fn=closing(1)), "standard output: is closed")


def test_a_closed_stderr_is_no_trouble():
    """Results come all the same."""
    done = execmem("load", HELLO, preexec_fn=closing(2))
    assert done.returncode == 0
    assert ".text" in done.stdout
    assert execmem("load", "--nonesuch", preexec_fn=closing(2)).returncode == 2


def test_a_reader_that_goes_away_is_no_trouble():
    """A pager that was quit ends the command, quietly."""
    for words in (["relocs", path("x86_64", "tables"), "--json"], ["load", HELLO], ["archs"]):
        there, here = os.pipe()
        os.close(there)
        done = execmem(*words, stdout=here)
        os.close(here)
        assert (done.returncode, done.stderr) == (0, "")


def test_an_encoding_without_our_letters_is_no_trouble():
    """What stdout's encoding does not have is escaped."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = execmem("load", HELLO, env=environment)
    assert done.returncode == 0, done.stderr
    done = execmem("load", "\u00e9\u4e2d.ko", env=environment)
    refused(done)


def test_ctrl_c_ends_with_130():
    """An interrupt is no error, and says so; work that others do for us ends, too."""
    process = subprocess.Popen(
        [sys.executable, "-m", "execmem", "reach"],
        cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    if process.returncode != 0:  # it was faster
        assert "Traceback" not in err
        assert process.returncode == 130


AT_THE_END = """
import atexit, os, signal, sys
atexit.register(os.kill, os.getpid(), signal.SIGINT)
sys.argv = ["execmem", *sys.argv[1:]]
from execmem.cli import main
main()
"""


@pytest.mark.parametrize(("words", "code"), [("--version", 0), ("nothing", 2)])
def test_what_is_done_is_not_interrupted(words, code):
    """Where Python is ending already, an interrupt changes neither the exit code nor the output."""
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_END, words],
        cwd=HERE, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "KeyboardInterrupt" not in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "execmem: interrupted\n"),
        (MemoryError(), 1, "execmem: out of memory\n"),
        (OSError(28, "No space left"), 1, "execmem: standard output: No space left\n"),
        (OSError(104, "Connection reset"), 1, "execmem: Connection reset\n"),
        (OSError(5, "Input/output error", "a\x1bb"), 1, "execmem: a\\x1bb: Input/output error\n"),
        (PermissionError(13, "Permission denied", "f"), 1, "execmem: f: Permission denied\n"),
        (BrokenPipeError(32, "Broken pipe"), 0, ""),
    ],
)
def test_what_may_come_from_anywhere(run, monkeypatch, error, code, said):
    """Interrupts, memory and the operating system's errors end alike wherever they arise."""

    def fails(**_):
        raise error

    monkeypatch.setattr(cli.cli, "main", fails)
    monkeypatch.setattr("execmem.streams.drop_output", lambda: None)
    assert run("load") == (code, "", said)


# What is read -----------------------------------------------------------------------------------


def strange(folder):
    """Make what is no file in a folder: return name -> path."""
    os.mkfifo(folder / "fifo.ko")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as made:
        made.bind(str(folder / "socket.ko"))
    (folder / "folder.ko").mkdir()
    (folder / "link.ko").symlink_to("fifo.ko")
    return {
        "a pipe": folder / "fifo.ko",
        "a socket": folder / "socket.ko",
        "a device": Path("/dev/zero"),
        "Is a directory": folder / "folder.ko",
        "is a pipe": folder / "link.ko",
    }


def test_what_is_no_file_is_refused_at_once(run, tmp_path):
    """A pipe, a socket, a device or a folder in the place of a file: one line, no waiting."""
    for said, where in strange(tmp_path).items():
        began = time.monotonic()
        for words in (
            ["load", where],
            ["run", where],
            ["relocs", where],
            ["explain", where, "--html", tmp_path / "page.html"],
            ["load", HELLO, where],
        ):
            code, out, err = run(*words)
            assert (code, out) == (1, ""), words
            assert said in err, words
            assert err.count("\n") == 1, words
        if not where.is_dir():
            for words in (["sweep", where], ["compare", "--workload", where]):
                code, out, err = run(*words)
                assert code == 1, words
                assert said in err, words
            assert run("kernel", where)[0] == 1
            assert run("load", "hello", "--root", where)[0] == 1
        code, _, err = run("run", HELLO, "hello_greet", f"file:{where}")
        assert code == 2
        assert said in err
        assert time.monotonic() - began < 60


def test_a_tree_with_pipes_in_it_does_not_hang(run, tmp_path):
    """Indexes and modules of a tree are files, too."""
    tree = tmp_path / "lib" / "modules" / "6.12.0"
    tree.mkdir(parents=True)
    os.mkfifo(tree / "modules.dep")
    assert run("load", "hello", "--root", tmp_path)[0] == 1
    (tree / "modules.dep").unlink()
    (tree / "modules.dep").write_text("hello.ko:\n")
    os.mkfifo(tree / "hello.ko")
    assert "is a pipe" in run("load", "hello", "--root", tmp_path)[2]
    os.mkfifo(tree / "modules.alias")
    assert run("crypto", "md4", "str:a", "--root", tmp_path)[0] == 1
    assert run("sweep", tmp_path)[0] in (0, 1)


def test_a_redirected_file_can_be_read():
    """/dev/stdin is a file where it is one, and refused where it is a pipe."""
    with HELLO.open("rb") as file:
        done = subprocess.run(
            [sys.executable, "-m", "execmem", "load", "/dev/stdin"],
            stdin=file, capture_output=True, text=True, cwd=HERE, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "execmem", "load", "/dev/stdin"],
        input="", capture_output=True, text=True, cwd=HERE, check=False,
    )  # fmt: skip
    refused(done, "is a pipe", "write what comes out of it to a file first")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_refused(run, tmp_path):
    """Permissions are said of the file that they are about."""
    secret = tmp_path / "secret.ko"
    secret.write_bytes(HELLO.read_bytes())
    secret.chmod(0)
    assert "secret.ko: file: Permission denied" in run("load", secret)[2]


# What is written ---------------------------------------------------------------------------------


def outputs(target):
    """Return command lines that write a file."""
    return [
        ["load", HELLO, "--svg", target],
        ["load", HELLO, "--png", target],
        ["load", HELLO, "--record", target],
        ["run", HELLO, "--record", target],
        ["explain", HELLO, "--html", target],
        ["compare", "--workload", "probes", "--design", "default", "--arch", "arm64", "--svg", target],
        ["compare", "--workload", "probes", "--design", "default", "--arch", "arm64", "--png", target],
        ["compare", "--workload", "probes", "--design", "default", "--arch", "arm64", "--record", target],
        ["sweep", HELLO, "--jobs", "1", "--output", target],
        ["export", HELLO, "--elf", target],
        ["coverage", HELLO, "--drcov", target],
        ["export", HELLO, "--core", target],
        ["check", CASE, "--linker", "none", "--junit", target],
        ["course", "new", "one-plt", "--output", target],
        ["demo", "reach", "--svg", target],
    ]  # fmt: skip


def suffixed(words, folder, name):
    """Return a target with the suffix that a command's option wants."""
    option = words[-2]
    suffix = {
        "--svg": ".svg",
        "--png": ".png",
        "--html": ".html",
        "--elf": ".elf",
        "--junit": ".xml",
    }.get(option, ".jsonl")
    return [*words[:-1], folder / f"{name}{suffix}"]


def test_files_that_cannot_be_written_are_one_line(run, tmp_path):
    """No folder, a folder in the way, no room: one line that names the file; nothing is left."""
    pytest.importorskip("matplotlib")
    for words in outputs("x"):
        for make, said in (
            (lambda w: suffixed(w, tmp_path / "missing", "out"), "No such file or directory"),
            (lambda w: suffixed(w, HELLO, "out"), "Not a directory"),
        ):
            full = make(words)
            code, _, err = run(*full)
            assert code == 1, full
            assert f"{full[-1]}: {said}" in err
            assert err.count("execmem: ") == 1
    for words in outputs("x"):
        full = suffixed(words, tmp_path, "folder")
        full[-1].mkdir(exist_ok=True)
        code, _, err = run(*full)
        assert code == 1, full
        assert str(full[-1]) in err
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_full_device_is_one_line(run):
    """A device is written to as it is, and may be full."""
    for words in (["load", HELLO, "--record", FULL], ["run", HELLO, "--record", FULL]):
        code, _, err = run(*words)
        assert code == 1
        assert "/dev/full: No space left on device" in err


def test_what_is_there_is_replaced_whole(run, tmp_path, monkeypatch):
    """A file that exists is kept where writing fails, and replaced where it does not."""
    page = tmp_path / "page.html"
    page.write_text("good")
    before = os.fsync

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, out, err = run("explain", HELLO, "--html", page)
    assert (code, out) == (1, "")
    assert err.endswith(f"{page}: No space left on device\n")
    assert page.read_text() == "good"
    monkeypatch.setattr(os, "fsync", before)
    assert run("explain", HELLO, "--html", page)[0] == 0
    assert page.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_every_command_was_tried():
    """The lists above know every command."""
    tried = {name.split()[0] for name in WRITING} | {str(words[0]) for words in outputs("x")}
    assert COMMANDS.keys() - tried == {*("crypto", "diff", "kernel", "kunit", "serve", "types")}
    assert root("x86_64").is_dir()
