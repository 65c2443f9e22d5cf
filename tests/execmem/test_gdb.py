# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem gdb`: what it says, what a gdb that it starts sees, and the session of its page."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from archs import Arch
from execmem.cli import main
from execmem.schema import complaints
from machine.face import Machine
from samples.modules import path, root
from tests.support.gdb import PROGRAM, drive

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "gdb.md"
needs_gdb = pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"{PROGRAM} is not installed")


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Return a file with commands."""
    found = tmp_path / "script"
    found.write_text("info symbol $pc\nprint 6 * 7\n")
    return found


def run(capsys: Any, *words: object) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of a command line."""
    with pytest.raises(SystemExit) as done:
        main(["gdb", *map(str, words)])
    said = capsys.readouterr()
    return int(done.value.code or 0), said.out, said.err


@needs_gdb
def test_a_function_and_an_init(capsys: Any, arch: Arch, script: Path) -> None:
    """Gdb is told where to connect, sees the first instruction, and the result comes out."""
    file = path(arch.name, "mathuser")
    code, out, err = run(capsys, file, "mathuser_lcm", 21, 6, "--batch", script)
    assert (code, err) == (0, ""), err
    assert "mathuser_lcm in section .text of target:/mathuser.ko" in out
    assert "$1 = 42" in out
    assert out.endswith("mathuser_lcm = 0x2a (42)\n")
    code, out, err = run(capsys, path(arch.name, "hello"), "--batch", script, "--param", "who=gdb")
    assert code == 0, err
    assert "init_module in section .init.text of target:/coming/hello.ko" in out
    assert "hello: Hello, gdb!" in out


def test_a_gdb_is_told_where_to_connect() -> None:
    """Stderr says where; who connects there and detaches lets the function go on."""
    words = [sys.executable, "-m", "execmem", "gdb", path("x86_64", "mathuser"), "mathuser_lcm"]
    with subprocess.Popen(
        [*map(str, words), "21", "6"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        told = re.fullmatch(
            r"Listening on 127\.0\.0\.1:(\d+); gdb-multiarch -ex 'target remote 127\.0\.0\.1:\1'\n",
            process.stderr.readline(),
        )
        assert told
        with socket.create_connection(("127.0.0.1", int(told[1]))) as client:
            client.sendall(b"$D#44")
            assert client.recv(100)
            out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "mathuser_lcm = 0x2a (42)\n", "")


@needs_gdb
def test_documents(capsys: Any, script: Path, tmp_path: Path) -> None:
    """JSON is as documented; an init that fails and a kill are told, and how it was debugged."""
    code, out, _ = run(
        capsys, path("x86_64", "mathuser"), "mathuser_lcm", 21, 6, "--batch", script, "--json"
    )
    found = json.loads(out)
    assert not list(complaints("gdb", found))
    assert (code, found["result"], found["connected"], found["ended"]) == (0, "0x2a", True, False)
    assert "$1 = 42" in found["debugger"]
    script.write_text("kill\n")
    code, out, err = run(
        capsys, path("x86_64", "mathuser"), "mathuser_lcm", 21, 6, "--batch", script, "--json"
    )
    found = json.loads(out)
    assert (code, found["result"], found["ended"]) == (0, None, True)
    assert "the debugger has ended the call" in err
    script.write_text("continue\n")
    code, out, err = run(
        capsys, path("x86_64", "failing"), "--param", "error=22", "--batch", script, "--json"
    )
    found = json.loads(out)
    assert not list(complaints("gdb", found))
    assert (code, found["function"]) == (1, None)
    assert "EINVAL" in found["fault"]
    assert any("exited with code 01" in line for line in found["debugger"])


def test_what_cannot_be(capsys: Any, tmp_path: Path) -> None:
    """What the options rule out is said before anybody waits."""
    file = path("x86_64", "hello")
    for words, code, why in (
        (("--socket", tmp_path / "s", "--port", 1), 2, "has no port"),
        (("--no-init",), 2, "--no-init"),
        (("nonesuch", 1), 1, "no such symbol"),
        (("--listen", "nowhere"), 1, "nowhere:0: no address"),
        (("--socket", tmp_path / "no" / "s"), 1, "No such file"),
    ):
        found, out, err = run(capsys, file, *words)
        assert (found, out, why in err) == (code, "", True), err
    _, _, err = run(capsys, file, "--listen", "203.0.113.1")
    assert "warning: whoever reaches 203.0.113.1" in err


@needs_gdb
def test_a_finding(capsys: Any, arch: Arch, tmp_path: Path) -> None:
    """The input lies as it lay for the fuzzer: gdb stops where that says that it went wrong."""
    words = ["fuzz", path(arch.name, "checksums"), "checksums_crc32", "--executions", 80]
    words += ["--input", "data=bytes:0-16", "--input", "length=int:0-40", "--input", "start=0"]
    with pytest.raises(SystemExit):
        main([*map(str, words), "--out", str(tmp_path / "out"), "--json"])
    (crash,) = json.loads(capsys.readouterr().out)["crashes"]
    script = tmp_path / "script"
    script.write_text("info symbol $pc\ncontinue\ninfo symbol $pc\n")
    code, out, err = run(capsys, "replay", crash["folder"], "--batch", script)
    assert (code, crash["where"] in err) == (1, True), err
    first, *_, last = (line for line in out.splitlines() if " in section " in line)
    assert first.startswith("checksums_crc32 in section .text")
    name, offset = re.fullmatch(r"(\w+) \+ (\d+) in section .*", last).groups()
    assert crash["where"].startswith(f"{name}+{int(offset):#x}")
    assert run(capsys, "replay", crash["folder"], "1")[0] == 2


@needs_gdb
def test_a_gdb_that_does_not_connect_is_not_waited_for(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that ends at once ends the wait, with its last word."""
    fake = tmp_path / PROGRAM
    fake.write_text("#!/bin/sh\necho no can do\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    code, _, err = run(capsys, path("x86_64", "hello"), "--batch", "/dev/null")
    assert code == 1
    assert f"{PROGRAM} never connected: no can do" in err


@needs_gdb
def test_the_session_of_the_page() -> None:
    """Gdb says what the page says, line by line."""
    (session,) = [part.partition("```")[0] for part in PAGE.read_text().split("```gdb\n")[1:]]
    commands, expected = [], []
    for line in session.splitlines():
        if line.startswith("(gdb) "):
            commands.append(line.removeprefix("(gdb) "))
        else:
            expected.append(line)
    machine = Machine("arm64", root=root("arm64"))
    module = machine.load("mathuser")
    said = drive(machine, lambda: module.call("mathuser_lcm", 21, 6), commands)
    assert "\n".join(said).endswith("\n".join(expected))
