# SPDX-License-Identifier: GPL-2.0-or-later
"""KUnit on the command line: which kernel and modules are meant, and what is shown of their tests."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import click

from execmem import booted, notices, report
from execmem.streams import say
from execmem.terminal import Meter
from kernels import ktap
from kernels.booted.kernel import lines_of
from kernels.errors import BootFailed
from loader.depends import ModuleTree, find, open_tree
from loader.errors import LoadError
from loader.files import SUFFIXES, is_file, module_name
from loader.kernel.find import built_in
from machine.booted import kunit as tests
from machine.booted.kunit import Filters, Outcome, Tested
from machine.booted.machine import BootedMachine

_FAILED = 1


def kunit(modules: Sequence[str], options: Mapping[str, Any]) -> int:
    """Run tests, show what they came to, and return the exit code."""
    found = list(_tested(modules, options))
    counts = _counts(found)
    good = all(each.outcome.is_good for each in found) and any(counts.values())
    if options["as_json"]:
        report.print_json(_document(found, counts, passed=good))
    else:
        shown = ", ".join(f"{name}: {count}" for name, count in counts.items())
        say(f"# Totals: {shown}")
    return 0 if good else _FAILED


def _tested(modules: Sequence[str], options: Mapping[str, Any]) -> Iterator[Tested]:
    """Yield what became of the tests of each module, and show it."""
    whole = options["whole_tree"]
    if whole and modules:
        raise click.UsageError("--all takes no modules")
    kernel = options["kernel"] or _kernel_of(modules)
    if kernel is None:
        raise click.UsageError("name the kernel: --kernel PATH")
    tree = open_tree(options["root"]) if options["root"] else tests.tree_of(kernel)
    if whole and tree is None:
        raise click.UsageError("--all needs the modules: --root DIR")
    names = tests.with_tests(tree) if whole and tree is not None else list(modules)
    own = options["builtin"] or (not names and not whole)
    filters = Filters(
        glob=options["filter_glob"],
        attributes=options["attributes"],
        action=options["filter_action"],
    )
    shower = _Shower(len(names) + own, quiet=options["as_json"])
    runner = _Runner(kernel, tree, filters, options)
    if own:
        tested = runner.built_in()
        shower.show(tested)
        yield tested
    for name in names:
        with shower.meter(name):
            tested = runner.module(name)
        shower.show(tested)
        yield tested


def _kernel_of(modules: Sequence[str]) -> str | None:
    """Return the kernel that modules were built with, where they lie in its build folder."""
    for module in modules:
        folder = built_in(Path(module)) if is_file(module) else None
        if folder is not None:
            return str(folder)
    return None


class _Runner:
    """Runs the tests of one kernel.

    Parameters
    ----------
    kernel
        Where it is.
    tree
        Its modules, by name.
    filters
        Which tests.
    options
        The command's.
    """

    def __init__(
        self,
        kernel: str,
        tree: ModuleTree | None,
        filters: Filters,
        options: Mapping[str, Any],
    ) -> None:
        self._tree = tree
        self._filters = filters
        self._options = {
            **{name: options[name] for name in ("console", "seconds")},
            "kernel": kernel,
            "root": None if tree is None else str(tree.folder),
        }
        words = f"{filters.command_line} {options['command_line']}".strip()
        self._more = {
            "command_line": words,
            "memory": options["memory"] << 20 if options["memory"] else None,
            "boot_seconds": options["seconds"] or None,
        }
        self._machine: BootedMachine | None = None

    def built_in(self) -> Tested:
        """Return what became of the tests that the kernel ran in its boot."""
        start = time.monotonic()
        try:
            machine = booted.open_machine("", self._options, **self._more)
        except BootFailed as failed:
            lines = [line.text for line in lines_of(bytearray(failed.printed + b"\n"))]
            if not any(map(ktap.is_version, lines)):
                raise
            return tests.built_in(lines, failed.reason, time.monotonic() - start)
        if tests.RUN_ALL not in machine.kernel.symbols:
            reason = "has no KUnit built in (CONFIG_KUNIT=y); name modules"
            return Tested(name=tests.BUILT_IN, outcome=Outcome.NONE, error=reason)
        lines = [line.text for line in machine.log]
        tested = tests.built_in(lines, "", time.monotonic() - start)
        if tested.outcome is Outcome.NONE and self._filters.parameters:
            return attrs.evolve(tested, outcome=Outcome.SKIPPED, error=tests.FILTERED)
        return tested

    def module(self, name: str) -> Tested:
        """Return what became of a module's tests."""
        if self._machine is None:
            more = {**self._more, "without": (tests.RUN_ALL,)}
            self._machine = booted.open_machine(name, self._options, **more)
        machine = self._machine
        try:
            path = Path(name)
            if "/" not in name and not name.endswith(SUFFIXES) and not is_file(name):
                path = find(self._tree, name)
            return tests.run(machine, path, self._filters)
        except LoadError as error:
            return Tested(name=module_name(name), outcome=Outcome.REFUSED, error=str(error))


class _Shower:
    """Shows modules' tests as one KTAP document, each module a test of it."""

    def __init__(self, total: int, *, quiet: bool) -> None:
        self._quiet = quiet
        self._total = total
        self._number = 0

    def meter(self, name: str) -> Meter:
        """Return what shows a module on a terminal while its tests run."""
        meter = Meter()
        meter.show(name, self._number, self._total)
        return meter

    def show(self, tested: Tested) -> None:
        """Show what became of a module's tests."""
        self._number += 1
        if self._quiet:
            return
        if self._number == 1:
            say("KTAP version 1")
            say(f"1..{self._total}")
        for line in ktap.lines_of(as_test(tested), self._number):
            say(line)


def as_test(tested: Tested) -> ktap.Entry:
    """Return a module as a test that its tests make up."""
    error = tested.error.split("\n")[0]
    log = tuple(f"# {each}" for each in tested.reports)
    status, directive = ktap.Status.FAILED, "ERROR" if error else ""
    if tested.outcome.is_good:
        status = ktap.Status.PASSED
    if tested.outcome is Outcome.SKIPPED:
        status, directive = ktap.Status.SKIPPED, "SKIP"
    if tested.outcome is Outcome.NONE:
        directive, error = "ERROR", error or "no test was run"
    if tested.outcome is Outcome.REFUSED or (tested.error and not tested.results.tests):
        log += tuple(f"# {line}" for line in tested.lines[-_LINES:])
    return ktap.Entry(
        name=tested.name,
        number=1,
        said=status,
        directive=directive,
        diagnostic=error,
        log=log,
        tests=tested.results.tests,
        problems=tested.results.problems,
    )


_LINES = 12  # of a log, where tests did not come to their end


def _counts(found: Sequence[Tested]) -> dict[str, int]:
    total: Counter[str] = Counter({status.value: 0 for status in ktap.Status})
    for each in found:
        total.update(each.results.counts)
    return dict(total)


def _document(
    found: Sequence[Tested], counts: Mapping[str, int], *, passed: bool
) -> dict[str, Any]:
    """Return everything, as JSON wants it."""
    return {
        "passed": passed,
        "counts": dict(counts),
        "modules": [
            {
                "name": each.name,
                "outcome": each.outcome.value,
                "error": each.error or None,
                "seconds": round(each.seconds, 3),
                "counts": each.results.counts,
                "problems": list(each.results.problems),
                "tests": [
                    {
                        "name": name,
                        "status": test.status.value,
                        "directive": test.directive,
                        "diagnostic": test.diagnostic,
                        "problems": list(test.problems),
                        "log": list(test.log),
                    }
                    for name, test in each.results.leaves()
                ],
                "reports": [booted.report_json(found) for found in each.reports],
                "log": [] if each.outcome.is_good else list(each.lines),
            }
            for each in found
        ],
        "notices": notices.texts(),
    }
