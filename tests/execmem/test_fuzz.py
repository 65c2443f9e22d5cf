# SPDX-License-Identifier: GPL-2.0-or-later
"""Fuzzing: what is found, in which order, what is kept whatever ends it, and files that are damaged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from archs import Arch
from emulator.faults import Fault, FaultKind
from execmem import Machine, fuzz
from execmem.cli import main
from execmem.fuzzing.campaign import Campaign, Part
from execmem.fuzzing.engine import Done, Finding
from execmem.fuzzing.folder import CRASHES, REPLAY, STATE, Folder, put
from execmem.fuzzing.inputs import BadInput, Layout, parse
from execmem.fuzzing.mutate import Mutator
from samples.modules import root
from tests.archs.facts import needs
from tests.support.modules import module as mini_module

CRC = ("data=bytes:0-16", "length=int:0-40", "start=0")
COMMAND = ["fuzz", "checksums", "checksums_crc32", "--arch", "arm64"]
COMMAND += [word for each in CRC for word in ("--input", each)]


def loaded(arch: str, name: str = "checksums") -> Any:
    """Return a machine with a sample module."""
    machine = Machine(arch, root=root(arch))
    machine.load(name)
    return machine


def run(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Run the command line."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    code = ended.value.code
    assert isinstance(code, int)
    return code, *capfd.readouterr()


@pytest.mark.parametrize("arch", ["x86_64", "arm64", "riscv64", "mips64el"])
def test_one_byte_too_far_is_found(arch: str) -> None:
    """An input ends where nothing follows: a length of one more is a fault, the exact one is none."""
    found = fuzz(loaded(arch), "checksums:checksums_crc32", *CRC, executions=250)
    assert [(each.kind, each.where.partition("+")[0]) for each in found.crashes] == [
        ("read", "checksums_crc32")
    ]
    values = Layout(tuple(map(parse, CRC))).values(found.crashes[0].data)
    assert isinstance(values["data"], bytes)
    assert isinstance(values["length"], int)
    assert values["length"] > len(values["data"])
    exact = ("data=bytes:0-16", "length=len(data)", "start=0")
    assert not fuzz(loaded(arch), "checksums:checksums_crc32", *exact, executions=250).crashes


def test_equal_seeds_find_the_same() -> None:
    """In the same order; another seed makes other inputs."""
    runs = []
    for seed in (1, 1, 2):
        told: list[bytes] = []

        def harness(machine: Any, data: bytes, told: list[bytes] = told) -> int:
            if told[-1:] != [data]:  # what took long is done again
                told.append(data)
            return int(machine.modules["mathlib"].call("mathlib_gcd", len(data), 12))

        found = fuzz(loaded("arm64", "mathlib"), harness, seed=seed, executions=300)
        runs.append((told, found.corpus))
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[2][0]


def test_the_machine_is_put_back() -> None:
    """Memory, heap, log: what one input does the next does not see, nor whoever comes afterwards."""
    machine = loaded("arm64", "notes")
    before = (machine.kernel.heap.live(), list(machine.log))
    with machine.device("notes") as notes:
        seen = set()

        def harness(_machine: Any, data: bytes) -> int:
            count: int = notes.write(data[:8]) if data else 0
            seen.add((count, notes.ioctl(0x6E00)))
            return 0

        fuzz(machine, harness, executions=100)
    assert len(seen) > 4
    assert all(count == held for count, held in seen)  # and not what others have written
    assert (machine.kernel.heap.live(), list(machine.log)) == before


def test_what_hangs_is_counted(capfd: pytest.CaptureFixture[str]) -> None:
    """Where time alone says so it is not believed; instructions decide."""
    machine = loaded("arm64")
    at = machine.modules["checksums"].symbols["checksums_crc32"]
    rounds = machine.rounds([(at, at + 4)], instructions=100_000, seconds=0.1)
    data = rounds.buffer(1 << 20)
    with rounds:
        short = rounds.run(lambda: rounds.call(at, (data.address, 1000, 0)))
        slow = rounds.run(lambda: time.sleep(0.05) or rounds.call(at, (data.address, 1000, 0)))
        long = rounds.run(lambda: rounds.call(at, (data.address, 1 << 20, 0)))
    assert (short.fault, slow.fault, short.result) == (None, None, slow.result)
    assert long.fault is not None
    assert long.fault.kind is FaultKind.INSTRUCTION_LIMIT


INPUTS = {  # of samples/modules/src/parser.c
    "comes back": "505253016c032f0000",
    "out of bounds": "5052530161035bb0ff",
    "hang": "505253016c032f00b0",
}


@pytest.mark.parametrize("edges", [False, True], ids=["blocks", "edges"])
@pytest.mark.parametrize("name", INPUTS)
def test_what_a_round_came_to_is_not_the_hosts_doing(name: str, edges: bool) -> None:
    """Too slow for its time or not, counted or not, a round tells the same of an input."""
    data, found = bytes.fromhex(INPUTS[name]), []
    for seconds in (60.0 if name != "hang" else 0.3, 0.0001, 1e-9):
        machine = loaded("riscv64", "parser")
        machine.sanitize("guard")
        (parser,) = machine.modules.values()
        at = parser.symbols["parser_parse"]
        spans = [(at, at + (1 << 14))]
        rounds = machine.rounds(spans, exact=edges, instructions=100_000, seconds=seconds)
        buffer = rounds.buffer(64)
        with rounds:
            done = rounds.run(lambda: rounds.call(at, (buffer.put(data), len(data))))  # noqa: B023 -- called at once
        kind = None if done.fault is None else done.fault.kind
        found.append((kind, done.result, sorted(set(done.blocks)), done.edges))
    assert found[0] == found[1] == found[2]
    assert (found[0][0] is None) == (name == "comes back")
    if name != "hang":
        assert found[0][3] if edges else found[0][2]


def test_a_run_goes_on_and_keeps_what_it_found(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Findings are told once, though the folder is gone on with; replays show them."""
    out = tmp_path / "out"
    words = [*COMMAND, "--executions", "250", "--out", out, "--json"]
    code, text, _ = run(capfd, *words)
    first = json.loads(text)
    assert (code, len(first["crashes"]), first["executions"] >= 250) == (1, 1, True)
    code, text, _ = run(capfd, *words)
    second = json.loads(text)
    assert (code, second["crashes"]) == (0, [])
    assert second["executions"] >= first["executions"] + 250
    (crash,) = (out / CRASHES).iterdir()
    assert str(crash) == first["crashes"][0]["folder"]
    assert (crash / "input").read_bytes().hex() == first["crashes"][0]["input"]
    code, text, _ = run(capfd, "fuzz", "replay", crash)
    assert code == 0
    assert first["crashes"][0]["key"] in text
    code, text, _ = run(capfd, "fuzz", "report", crash)
    assert (code, "input, " in text, "checksums_crc32" in text) == (0, True, True)
    assert "execmem gdb replay ." in text
    shown = subprocess.run(
        [sys.executable, crash / "reproduce.py"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert first["crashes"][0]["key"] in shown.stdout
    code, _, err = run(capfd, *COMMAND, "--input", "more=1", "--out", out)
    assert (code, "is of another target" in err) == (1, True)


def test_a_kill_loses_no_finding(tmp_path: Path) -> None:
    """As soon as the next input could have run, the finding is there; a folder is gone on with."""
    out = tmp_path / "out"
    words = [*COMMAND, "--executions", "100000000", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "execmem", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    try:
        until = time.monotonic() + 60
        while not list(out.glob(f"{CRASHES}/*/{REPLAY}")) and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    meaning = json.loads((out / STATE).read_text())["meaning"] if (out / STATE).exists() else {}
    folder = Folder(out, meaning)
    assert len(folder.known()) == 1
    folder.corpus()


class _Dying:
    """One who dies over an input."""

    size = 1
    mutator = Mutator(16)

    def __init__(self) -> None:
        self.order: list[str] = []

    def do(self, parts: Any) -> Any:
        for number, part in enumerate(parts):
            if part.shrink is not None:
                yield number, Done(executed=0, kept=(), finding=part.shrink)
                continue
            inputs = tuple(part.made(self.mutator))
            bad = [at for at, data in enumerate(inputs) if len(data) == 3]
            self.order.append("run")
            yield (
                number,
                "died at somewhere (pc 0x1)"
                if bad
                else Done(executed=len(inputs), used=len(inputs), kept=()),
            )


def test_who_dies_costs_an_input_that_is_kept() -> None:
    """It is found among those of the part, and kept before any other is run."""
    crew = _Dying()
    kept: list[Finding] = []

    def keep(finding: Finding) -> None:
        kept.append(finding)
        crew.order.append("keep")

    found = Campaign(crew, [b"", b"abcd"], executions=600, keep=keep).run()
    assert [(each.kind, len(each.data)) for each in found.crashes] == [("emulator died", 3)]
    assert kept[0].data == found.crashes[0].data
    assert crew.order[crew.order.index("keep") - 1] == "run"


def test_findings_are_told_apart_by_functions() -> None:
    """Not by addresses; by offsets where one of a module's functions has many in it."""

    def of(where: str, *frames: str) -> Finding:
        return Finding(data=b"", kind="read", where=where, backtrace=frames)

    first = of("one+0x10/0x20 [m]", "two+0x4/0x8 [m]")
    assert first.key == of("one+0x10/0x24 [m]", "two+0x0/0x8 [m]").key
    assert first.name == of("one+0x10 [m]", "two+0x0/0x8 [m]").name
    assert first.key != of("one+0x14/0x20 [m]", "two+0x4/0x8 [m]").key
    assert of("memcpy+0x1/0x9").key == of("memcpy+0x2/0x9").key
    assert first.key != of("one+0x10/0x20 [m]", "three+0x4/0x8 [m]").key
    assert of("0xffff1234").key == of("0xffff5678").key


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["data"], "expected NAME=KIND"),
        (["data=bites"], "is no kind of input"),
        (["data=bytes:9-1"], "expected MIN-MAX"),
        (["n=int:9-1"], "the range is empty"),
        (["n=len(data)"], "there are no such bytes"),
        (["data=bytes", "data=int"], "is given twice"),
        (["s=struct:list_head"], "no types are known"),
    ],
)
def test_inputs_that_are_none(words: list[str], reason: str) -> None:
    """Refused by name."""
    with pytest.raises(BadInput, match=reason.replace("(", r"\(")):
        Layout(tuple(map(parse, words)))


def test_any_bytes_are_an_input() -> None:
    """Numbers first, byte strings behind, the last one up to the end; short ones are filled up."""
    made = Layout(
        tuple(map(parse, ("a=bytes:2-4", "n=int:10-20", "b=bytes:0-8", "m=len(b)", "c=7")))
    )
    data = bytes([13, 0, 0, 0, 0, 0, 0, 0]) + b"\3\0abc" + b"hello"
    assert made.values(data) == {"a": b"abc", "n": 12, "b": b"hello", "m": 5, "c": 7}
    assert made.values(b"") == {"a": b"\0\0", "n": 10, "b": b"", "m": 0, "c": 7}
    assert list(made.values(data)) == ["a", "n", "b", "m", "c"]
    for each in Mutator(made.most, made.fields, [b"word"]).inputs([b"", data], 5, 300):
        values = made.values(each)
        assert isinstance(values["n"], int)
        assert isinstance(values["a"], bytes)
        assert 10 <= values["n"] <= 20
        assert 2 <= len(values["a"]) <= 4
        assert len(each) <= made.most


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"input"', '"in"'),
        lambda text: text.replace('"setting"', '"set"'),
        lambda text: text.replace('"function"', '"functions"'),
        lambda text: text.replace('"inputs": [', '"inputs": [1, '),
        lambda text: text.replace('"arch"', '"nonesuch"'),
        lambda text: "[" * 100_000,
        lambda text: "\udcff\0",
        lambda text: "[]",
    ],
)
def test_damaged_findings_are_one_line(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, damage: Any
) -> None:
    """Whoever they come from."""
    from execmem.fuzzing import reports
    from execmem.fuzzing.setting import Setting

    options = {"arch": "arm64"}
    setting = Setting.of(options, module="checksums", function="checksums_crc32", inputs=CRC)
    finding = Finding(data=b"a", kind="read", where="here")
    text = str(reports.files(setting, finding, "a machine")[REPLAY])
    assert damage(text) != text
    (tmp_path / REPLAY).write_text(damage(text), errors="surrogateescape")
    for what in ("replay", "report"):
        code, out, err = run(capfd, "fuzz", what, tmp_path)
        assert (code, out) == (1, "")
        assert len(err.splitlines()) == 1
        assert "damaged" in err


def test_damaged_folders_are_one_line(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Corpora of anybody are taken; a state that is none is refused."""
    words = [*COMMAND, "--executions", "50", "--out", tmp_path]
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "anything").write_bytes(os.urandom(100))
    assert run(capfd, *words)[0] in (0, 1)
    put(tmp_path / STATE, '{"meaning": 3}')
    code, _, err = run(capfd, *words)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "is damaged" in err
    code, _, err = run(capfd, *COMMAND, "--out", tmp_path / STATE)
    assert (code, len(err.splitlines())) == (1, 1)


def test_usage(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What is missing or too much is named."""
    for words, said in (
        (["fuzz", "notes"], "expected one of FUNCTION"),
        (["fuzz", "notes", "f", "--device", "notes"], "expected one of FUNCTION"),
        (["fuzz", "vmlinux", "f"], "--kernel"),
        (["fuzz", "checksums", "checksums_crc32"], "no types tell"),
        (["fuzz", "checksums", "nonesuch", "--input", "a=1"], "no such symbol"),
        (["fuzz", "notes", "--syscall", "write:fd=1"], "booted kernel"),
        (["fuzz", "notes", "--harness", "nonesuch.py:f"], "No such file"),
        (["fuzz", "notes", "--device", "notes", "--operation", "eat"], "expected write"),
    ):
        code, out, err = run(capfd, *words, "--executions", "10")
        assert code in (1, 2), words
        assert said in err + out, err


def test_a_fault_of_a_limit_has_one_place() -> None:
    """Where it was reached is chance."""
    from execmem.fuzzing.engine import of_fault

    faults = [Fault(FaultKind.INSTRUCTION_LIMIT, pc, f"loop+{pc:#x}") for pc in (4, 8)]
    assert len({of_fault(b"", fault, "m:f").key for fault in faults}) == 1
    assert Part().inputs is None


def test_what_the_kernel_lacks_is_no_finding(
    tmp_path: Path, arch: Arch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An input that comes to a function that the modelled kernel does not have is told of, no more."""
    needs(arch, "run")
    path = tmp_path / "mini.ko"
    path.write_bytes(mini_module(arch.machine, undefined=["nobody_has_this"]))
    line = [
        "fuzz",
        str(path),
        "mini_work",
        "--input",
        "a=int",
        "--executions",
        "30",
        "--no-sandbox",
    ]
    with pytest.raises(SystemExit) as ended:
        main([*line, "--out", str(tmp_path / "out"), "--json"])
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["executions"], found["crashes"]) == (30, [])
    (said,) = found["lacking"]
    assert "'nobody_has_this'" in said
    assert not list((tmp_path / "out" / "crashes").glob("*"))
    with pytest.raises(SystemExit):
        main(line)
    told = capsys.readouterr()
    assert "0 found" in told.out
    assert "'nobody_has_this'" in told.err
