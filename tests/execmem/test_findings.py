# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem run --sanitize`: what is found is printed, as text and as JSON that the schema knows.

What is wrong with each input stands in the source of the sample module `parser`.
"""

from __future__ import annotations

import pytest

from archs import Arch
from execmem.cli import main
from tests.execmem.test_documents import check, documents

LEAK, LOCK, WRITE = b"k\x02+1", b"m\x01?", b"n\x08#1234567"


def words(arch: Arch, records: bytes, *more: str) -> list[str]:
    """Return a command line that lets the parser read records."""
    data = b"PRS\x01" + records
    call = [f"hex:{data.hex()}", str(len(data))]
    return ["run", "parser", "parser_parse", *call, "--arch", arch.name, *more]


def printed(capsys: pytest.CaptureFixture[str], line: list[str]) -> list[str]:
    """Return what a command line that succeeds prints."""
    with pytest.raises(SystemExit) as caught:
        main(line)
    assert caught.value.code == 0
    return capsys.readouterr().out.splitlines()


def test_findings_are_printed(arch: Arch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each in a line, after the result, and only those of the checks that were asked for."""
    lines = printed(capsys, words(arch, LEAK + LOCK, "--sanitize", "all"))
    assert lines[0] == "parser_parse = 0x1 (1)"
    assert [line.partition(":")[0] for line in lines[1:]] == ["lock imbalance", "leak"]
    lines = printed(capsys, words(arch, LEAK + LOCK, "--sanitize", "guard,locks"))
    assert [line.partition(":")[0] for line in lines[1:]] == ["lock imbalance"]


def test_findings_as_json(arch: Arch, capsys: pytest.CaptureFixture[str]) -> None:
    """The document has them, with the object; without checks there are none."""
    (plain,) = documents(capsys, *words(arch, LEAK, "--json"))
    assert plain["findings"] == []
    (found,) = documents(capsys, *words(arch, LEAK, "--sanitize", "leaks", "--json"))
    check("run", found)
    (leak,) = found["findings"]
    assert leak["kind"] == "leak"
    assert leak["object"]["size"] == 2
    assert leak["object"]["address"] == leak["address"]
    assert "parser_parse+0x" in leak["object"]["allocated"][0]


def test_a_fault_says_the_object(arch: Arch, capsys: pytest.CaptureFixture[str]) -> None:
    """What stops the guest is an error in a line, with the object that it is about."""
    with pytest.raises(SystemExit) as caught:
        main(words(arch, WRITE, "--sanitize", "all"))
    assert caught.value.code == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("execmem: out-of-bounds access of 0x")
    assert "0 bytes behind the 8-byte object" in said
    with pytest.raises(SystemExit):
        main(words(arch, WRITE, "--sanitize", "gard"))
    assert "'gard' is no check; hint: there are guard, leaks" in capsys.readouterr().err
