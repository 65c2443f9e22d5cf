# SPDX-License-Identifier: GPL-2.0-or-later
"""KUnit tests in booted kernels: a module's, and those that are built in.

A module's tests run when the kernel has loaded it, each in a thread of the kernel's own. What
they come to is what they print (`kernels.ktap`); one that oopses KUnit itself counts as failed,
one that panics or never comes back ends the run of its module, and of nothing else, because each
module is loaded into the machine as it was after its boot.
Documentation/dev-tools/kunit/run_manual.rst, lib/kunit/executor.c.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import attrs

from emulator.faults import BadCall, Fault, FaultKind
from kernels import ktap
from kernels.booted.reports import Report, every
from kernels.log import LogLine
from kernels.tracing import Hit, PatchRefused
from loader.depends import ModuleTree, depends_of, open_tree, tree_around
from loader.errors import LoadError
from loader.files import ModuleFile, module_name
from machine.booted.machine import BootedMachine

KUNIT = "kunit"  # the module, where it is one
RUN_ALL = "kunit_run_all_tests"  # runs what is built in, at the end of the boot (init/main.c)
ENABLE = "kunit.enable=1"  # where CONFIG_KUNIT_DEFAULT_ENABLED is off
BUILT_IN = "built-in"
FILTERED = "no test matches the filters"
_BEGINS = "kunit_init_test"  # (test, name, log), before each test case
_SECTION = b".kunit_test_suites\0"
_NAME = 256  # bytes of a test's name


class Outcome(enum.Enum):
    """What became of a module's tests."""

    PASSED = "passed"
    FAILED = "failed"
    CRASHED = "crashed"
    SKIPPED = "skipped"
    REFUSED = "refused"  # the module did not load
    NONE = "no tests"

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong."""
        return self in (self.PASSED, self.SKIPPED)


@attrs.frozen(kw_only=True)
class Filters:
    """Which tests are run: KUnit's own parameters.

    Parameters
    ----------
    glob
        `SUITE` or `SUITE.TEST`, with `*` and `?`; empty: all.
    attributes
        By their attributes: `speed>slow, module!=example`; empty: all.
    action
        What becomes of those that attributes leave out: `skip`, or empty: they are not there.
    """

    glob: str = ""
    attributes: str = ""
    action: str = ""

    @property
    def parameters(self) -> dict[str, Any]:
        """As the module takes them."""
        found = {
            "filter_glob": self.glob,
            "filter": self.attributes,
            "filter_action": self.action,
        }
        return {name: value for name, value in found.items() if value}

    @property
    def command_line(self) -> str:
        """As a kernel takes them where KUnit is built in."""
        words = []
        for name, value in self.parameters.items():
            text = f'"{value}"' if any(c.isspace() for c in str(value)) else value
            words.append(f"{KUNIT}.{name}={text}")
        return " ".join([ENABLE, *words])


@attrs.frozen(kw_only=True)
class Tested:
    """What became of a module's tests.

    Parameters
    ----------
    name
        The module; `built-in` for those of the kernel itself.
    outcome
        In a word.
    results
        What the tests said.
    error
        Why the module did not load, its tests did not come to an end, or none was run; else
        empty.
    lines
        What the kernel logged meanwhile.
    reports
        What it found wrong meanwhile. Tests of checkers want that.
    seconds
        Of the host.
    """

    name: str
    outcome: Outcome
    results: ktap.Results = attrs.field(factory=ktap.Results)
    error: str = ""
    lines: tuple[str, ...] = attrs.field(default=(), repr=False)
    reports: tuple[Report, ...] = ()
    seconds: float = 0.0


class Testee(Protocol):
    """The machine that tests run in."""

    @property
    def tree(self) -> ModuleTree | None:
        """Where modules are looked up by name."""
        ...

    @property
    def log(self) -> Sequence[LogLine]:
        """The kernel log."""
        ...

    @property
    def modules(self) -> Any:
        """The modules that were loaded, by name."""
        ...

    def fork(self) -> AbstractContextManager[Any]:
        """Go back at the end."""
        ...

    def load(self, module: Path, /, *, init: bool = ..., **params: Any) -> Any:
        """Load a module, and so run its tests."""
        ...


def outcome_of(results: ktap.Results, error: str = "") -> Outcome:
    """Return what tests came to, in a word."""
    found = {test.status for _, test in results.leaves()}
    if error or results.cut or ktap.Status.CRASHED in found:
        return Outcome.CRASHED
    if ktap.Status.FAILED in found:
        return Outcome.FAILED
    if ktap.Status.PASSED in found:
        return Outcome.PASSED if not results.problems else Outcome.FAILED
    return Outcome.SKIPPED if found else Outcome.NONE


def run(machine: Testee, module: Path, filters: Filters | None = None) -> Tested:
    """Return what became of a module's tests; the machine is as before.

    Parameters
    ----------
    machine
        With a kernel that has KUnit, built in or as a module.
    module
        The file.
    filters
        What the kernel was told on its command line; a KUnit that is a module is told here.
    """
    start = time.monotonic()
    before = len(machine.log)
    begun: list[str] = []
    error = refused = ""
    with machine.fork():
        try:
            _prepare(machine, module, filters or Filters())
            with _names(machine, begun):
                machine.load(module)
        except LoadError as why:
            refused = str(why)
        except Fault as fault:
            error = _why(fault)
        lines = tuple(line.text for line in machine.log[before:])
    results = ktap.read(lines)
    if error:
        results = ktap.with_names(results, begun)
    outcome = Outcome.REFUSED if refused else outcome_of(results, error)
    if outcome is Outcome.NONE and filters is not None and filters.parameters:
        outcome, error = Outcome.SKIPPED, FILTERED
    return Tested(
        name=module_name(module),
        outcome=outcome,
        results=results,
        error=refused or error,
        lines=lines,
        reports=tuple(every(lines)),
        seconds=time.monotonic() - start,
    )


def built_in(lines: Iterable[str], error: str = "", seconds: float = 0.0) -> Tested:
    """Return what became of the tests that a kernel ran in its boot.

    Parameters
    ----------
    lines
        What it logged.
    error
        Why it did not come up, where it did not.
    seconds
        Of the host, that it took.
    """
    every_line = tuple(lines)
    results = ktap.read(every_line)
    return Tested(
        name=BUILT_IN,
        outcome=outcome_of(results, error),
        results=results,
        error=error,
        lines=every_line,
        reports=tuple(every(every_line)),
        seconds=seconds,
    )


def with_tests(tree: ModuleTree) -> list[str]:
    """Return the modules of a tree that have KUnit tests, by the section that those are in."""
    found = []
    for name in sorted(tree.files):
        path = tree.path(name)
        try:
            if path is not None and _SECTION in ModuleFile.read(path).image():
                found.append(name)
        except LoadError:
            continue
    return found


def tree_of(kernel: str) -> ModuleTree | None:
    """Return the modules that were built with a kernel, where that lies in its build folder."""
    place = Path(kernel)
    try:
        return open_tree(place) if place.is_dir() else tree_around(place)
    except (LoadError, OSError, ValueError):
        return None


def _prepare(machine: Testee, module: Path, filters: Filters) -> None:
    """Load KUnit where it is a module, with what it is to run."""
    file = ModuleFile.read(module)
    if KUNIT in machine.modules or not (KUNIT in depends_of(file) or _SECTION in file.image()):
        return  # tests that use nothing of KUnit do not say that they need it
    tree = machine.tree or tree_around(module)
    path = None if tree is None else tree.path(KUNIT)
    if path is not None:  # else the load of the module says what is missing
        machine.load(path, enable="1", **filters.parameters)


def _names(machine: Testee, begun: list[str]) -> AbstractContextManager[Any]:
    """Note the name of each test that begins; nothing where that cannot be seen."""
    if not isinstance(machine, BootedMachine):
        return nullcontext()
    guest = machine.kernel.guest

    def begins(hit: Hit) -> None:
        begun.append(guest.string(hit.arguments[1], _NAME))

    try:
        place = f"{KUNIT}:{_BEGINS}" if KUNIT in machine.modules else _BEGINS
        return machine.probe(place, begins)
    except (BadCall, PatchRefused):
        return nullcontext()


def _why(fault: Fault) -> str:
    """Return why tests did not come to an end."""
    if fault.kind is FaultKind.TIME_LIMIT:
        return f"did not come back in time, at {fault.where} (--seconds)"
    return str(fault)
