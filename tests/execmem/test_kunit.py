# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem kunit`: what is printed, and the exit code, with a machine that only says things."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emulator.faults import Fault, FaultKind
from execmem import kunit as face
from execmem.cli import main
from execmem.schema import complaints
from kernels import ktap
from kernels.errors import BootFailed
from kernels.log import LogLine
from loader.errors import KernelRefused

PASSES = """\
KTAP version 1
1..1
    KTAP version 1
    # Subtest: {0}
    # module: {0}
    1..2
    ok 1 one
    ok 2 two # SKIP not here
ok 1 {0}
"""
FAILS = """\
KTAP version 1
1..1
    KTAP version 1
    # Subtest: {0}
    1..1
    # wrong: EXPECTATION FAILED at lib/x.c:29
    Expected 1 == 2
    not ok 1 wrong
not ok 1 {0}
"""
HANGS = """\
KTAP version 1
1..1
    KTAP version 1
    # Subtest: {0}
    1..3
    ok 1 one
"""
SKIPS = "KTAP version 1\n1..1\nok 1 {0} # SKIP no hardware\n"


class Said:
    """A machine that says what is written down for each module."""

    def __init__(self, said: dict[str, Any], boot: str = "") -> None:
        self.said = said
        self.log = [LogLine(6, line) for line in ["Linux version 6.12", *boot.splitlines()]]
        self.modules: dict[str, Any] = {}
        self.tree = None
        symbols = {"kunit_run_all_tests": 1} if boot else {}
        self.kernel = SimpleNamespace(symbols=symbols, release="6.12")
        self.forks = 0

    @contextmanager
    def fork(self) -> Iterator[Said]:
        """Go back at the end."""
        self.forks += 1
        before = list(self.log)
        yield self
        self.log = before

    def load(self, module: Path, /, **_params: Any) -> None:
        """Say what is written down for it."""
        said = self.said[module.stem]
        text, error = said if isinstance(said, tuple) else (said, None)
        self.log += [LogLine(6, line) for line in text.format(module.stem).splitlines()]
        if error is not None:
            raise error


@pytest.fixture
def run(monkeypatch: Any, tmp_path: Path, capsys: Any) -> Callable[..., tuple[int, str, Said]]:
    """Return what runs the command on such a machine: exit code, stdout, the machine."""

    def go(said: dict[str, Any], *words: str, boot: Any = "") -> tuple[int, str, Said]:
        machine = Said(said, boot if isinstance(boot, str) else "")

        def opened(_name: str, _options: Any, **more: Any) -> Said:
            if isinstance(boot, Exception) and not more.get("without"):
                raise boot
            return machine

        monkeypatch.setattr(face.booted, "open_machine", opened)
        paths = []
        for name in said:
            path = tmp_path / f"{name}.ko"
            path.write_bytes(b"")
            paths.append(str(path))
        with pytest.raises(SystemExit) as ended:
            main(["kunit", *paths, "--kernel", "vmlinux", *words])
        return int(str(ended.value.code)), capsys.readouterr().out, machine

    return go


HANG = Fault(kind=FaultKind.TIME_LIMIT, pc=1, where="spin+0x4/0x10 [hangs]", reason="")
PANIC = Fault(kind=FaultKind.PANIC, pc=1, where="boom+0x4/0x10", reason="all is lost")
REFUSED = KernelRefused("absent", "init_module", 2, "ENOENT", ("absent: Unknown symbol foo",))


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"a": PASSES}, 0),
        ({"a": PASSES, "b": SKIPS}, 0),
        ({"a": SKIPS}, 0),
        ({"a": FAILS, "b": PASSES}, 1),
        ({"hangs": (HANGS, HANG), "b": PASSES}, 1),
        ({"panics": (HANGS, PANIC)}, 1),
        ({"absent": ("", REFUSED)}, 1),
        ({"empty": ""}, 1),
    ],
)
def test_the_exit_code_says_whether_all_passed(
    run: Callable[..., tuple[int, str, Said]], said: dict[str, Any], code: int
) -> None:
    """The exit code says whether all passed; what is printed is whole KTAP of every module."""
    ended, out, machine = run(said)
    assert ended == code
    found = ktap.read(out.splitlines())
    assert not found.problems
    assert not found.cut
    assert [test.name for test in found.tests] == list(said)
    assert all(test.status.is_good for test in found.tests) == (not code)
    assert machine.forks == len(said)


def test_what_hangs_is_named_and_the_next_module_still_runs(
    run: Callable[..., tuple[int, str, Said]],
) -> None:
    """What hangs is named, and the next module still runs."""
    code, out, _ = run({"hangs": (HANGS, HANG), "b": PASSES})
    assert code == 1
    assert "did not come back in time, at spin+0x4/0x10 [hangs]" in out
    assert "\nok 2 b" in out
    assert "2 of 3" in out


def test_json_says_all_of_it(run: Callable[..., tuple[int, str, Said]]) -> None:
    """JSON says all of it."""
    code, out, _ = run({"a": FAILS, "absent": ("", REFUSED)}, "--json")
    document = json.loads(out)
    assert not list(complaints("kunit", document))
    assert code == 1
    assert document["passed"] is False
    assert document["counts"] == {"passed": 0, "failed": 1, "skipped": 0, "crashed": 0}
    first, second = document["modules"]
    assert (first["outcome"], second["outcome"]) == ("failed", "refused")
    assert [test["name"] for test in first["tests"]] == ["a.wrong"]
    assert "    Expected 1 == 2" in first["tests"][0]["log"]
    assert "Unknown symbol foo" in second["error"]


def test_what_is_built_in_runs_in_the_boot(run: Callable[..., tuple[int, str, Said]]) -> None:
    """What is built in runs in the boot; where that fails modules are run in another."""
    code, out, _ = run({}, boot=PASSES.format("suite"))
    assert code == 0
    assert "ok 1 built-in" in out
    printed = HANGS.format("suite").encode()
    failed = BootFailed("vmlinux", "its time is over", "", printed)
    code, out, _ = run({"a": PASSES}, "--builtin", boot=failed)
    assert code == 1
    assert "not ok 1 built-in # ERROR its time is over" in out
    assert "\nok 2 a" in out
    code, out, _ = run({})
    assert code == 1
    assert "CONFIG_KUNIT=y" in out


def test_a_boot_that_came_to_no_test_is_no_tests_failure(
    run: Callable[..., tuple[int, str, Said]], capsys: Any
) -> None:
    """A boot that came to no test is refused as elsewhere."""
    code, out, _ = run({}, boot=BootFailed("vmlinux", "panic", "", b"Linux version 6.12\n"))
    assert (code, out) == (1, "")


def test_modules_that_filters_leave_out_are_skipped(
    run: Callable[..., tuple[int, str, Said]],
) -> None:
    """Modules that filters leave out are skipped; where nothing is left, that is no success."""
    code, out, _ = run({"empty": "", "a": PASSES}, "--filter-glob", "a*")
    assert code == 0
    assert "ok 1 empty # SKIP no test matches the filters" in out
    assert run({"empty": ""}, "--filter-glob", "a*")[0] == 1


@pytest.mark.parametrize("words", [["kunit"], ["kunit", "x", "--all", "--kernel", "k"]])
def test_wrong_words_are_usage(words: list[str]) -> None:
    """Wrong words are usage."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
