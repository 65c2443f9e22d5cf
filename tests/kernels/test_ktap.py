# SPDX-License-Identifier: GPL-2.0-or-later
"""KTAP is read as its specification has it, whatever stands between, wherever it is cut off."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import ktap
from kernels.ktap import Entry, Status

# Documentation/dev-tools/ktap.rst, "Example KTAP output" and "Test case result lines".
SPECIFICATION = """\
KTAP version 1
1..1
  KTAP version 1
  1..3
    KTAP version 1
    1..1
    # test_1: initializing test_1
    ok 1 test_1
  ok 1 example_test_1
    KTAP version 1
    1..2
    ok 1 test_1 # SKIP test_1 skipped
    ok 2 test_2
  ok 2 example_test_2
    KTAP version 1
    1..3
    ok 1 test_1
    # test_2: FAIL
    not ok 2 test_2
    ok 3 test_3 # SKIP test_3 skipped
  not ok 3 example_test_3
not ok 1 main_test
"""
# What KUnit of 5.15 prints: TAP 14, names by `# Subtest`, dashes.
OLD = """\
TAP version 14
1..2
    # Subtest: example
    1..2
    # example_simple_test: initializing
    ok 1 - example_simple_test
    # example_skip_test: initializing
    ok 2 - example_skip_test # SKIP this test should be skipped
# example: pass:1 fail:0 skip:1 total:2
ok 1 - example
    # Subtest: other
    1..1
    not ok 1 - it
not ok 2 - other
"""


def _shape(tests: tuple[Entry, ...]) -> list[Any]:
    return [
        (test.name, test.status.value, *([_shape(test.tests)] if test.tests else []))
        for test in tests
    ]


def test_the_specifications_example_is_read_as_it_says() -> None:
    """The specification's example is read as it says."""
    found = ktap.read(SPECIFICATION.splitlines())
    assert _shape(found.tests) == [
        (
            "main_test",
            "failed",
            [
                ("example_test_1", "passed", [("test_1", "passed")]),
                ("example_test_2", "passed", [("test_1", "skipped"), ("test_2", "passed")]),
                (
                    "example_test_3",
                    "failed",
                    [("test_1", "passed"), ("test_2", "failed"), ("test_3", "skipped")],
                ),
            ],
        )
    ]
    assert not found.problems
    assert not found.cut
    assert found.counts == {"passed": 3, "failed": 1, "skipped": 2, "crashed": 0}
    inner = found.tests[0].tests[0].tests[0]
    assert inner.log == ("    # test_1: initializing test_1",)


def test_what_older_kernels_print_is_read() -> None:
    """What older kernels print is read."""
    found = ktap.read(OLD.splitlines())
    assert _shape(found.tests) == [
        (
            "example",
            "passed",
            [("example_simple_test", "passed"), ("example_skip_test", "skipped")],
        ),
        ("other", "failed", [("it", "failed")]),
    ]


@pytest.mark.parametrize(
    ("line", "name", "status", "directive", "diagnostic"),
    [
        ("ok 1 test_case_name", "test_case_name", "passed", "", ""),
        ("not ok 1 test_case_name", "test_case_name", "failed", "", ""),
        (
            "ok 1 test # SKIP necessary dependency unavailable",
            "test",
            "skipped",
            "SKIP",
            "necessary dependency unavailable",
        ),
        ("not ok 1 test # SKIP none", "test", "skipped", "SKIP", "none"),
        ("not ok 1 test # TIMEOUT 30 seconds", "test", "failed", "TIMEOUT", "30 seconds"),
        ("ok 1 check return code # rcode=0", "check return code", "passed", "", "rcode=0"),
        ("not ok 1 t # XFAIL known", "t", "failed", "XFAIL", "known"),
        ("ok 1", "", "passed", "", ""),
        ("ok 1 # SKIP", "", "skipped", "SKIP", ""),
    ],
)
def test_a_result_line_says_what_the_specification_says(
    line: str, name: str, status: str, directive: str, diagnostic: str
) -> None:
    """A result line says what the specification says."""
    (found,) = ktap.read(["KTAP version 1", "1..1", line]).tests
    assert (found.name, found.status.value, found.directive, found.diagnostic) == (
        name,
        status,
        directive,
        diagnostic,
    )


def test_where_it_is_cut_off_the_test_under_way_has_crashed() -> None:
    """Where it is cut off the test under way has crashed, and what was planned is said."""
    lines = SPECIFICATION.splitlines()[:7]
    found = ktap.read(lines)
    assert found.cut
    (leaf,) = found.leaves()
    assert leaf[1].status is Status.CRASHED
    assert found.tests[0].status is Status.CRASHED
    named = ktap.with_names(found, ["the_one"])
    assert [name.rpartition(".")[2] for name, _ in named.leaves()] == ["the_one"]
    lines = OLD.splitlines()[:6]
    found = ktap.read(lines)
    assert [test.status.value for _, test in found.leaves()] == ["passed", "crashed"]


def test_results_that_wait_to_be_printed_are_told() -> None:
    """A line that waits for the next one is no failure of another test."""
    lines = OLD.splitlines()[:6]
    found = ktap.with_names(ktap.read(lines), ["example_simple_test", "second", "third"])
    leaf = list(found.leaves())[-1]
    assert leaf[0] == "example.third"
    assert leaf[1].problems == ("results that were not printed yet: second",)


def test_a_suite_without_a_result_crashes_and_the_next_is_read() -> None:
    """A suite without a result crashes, and the next is read."""
    text = """\
KTAP version 1
1..2
    KTAP version 1
    # Subtest: first
    1..2
    ok 1 a
Oops: general protection fault
    KTAP version 1
    # Subtest: second
    1..1
    ok 1 c
ok 2 second
"""
    found = ktap.read(text.splitlines())
    assert _shape(found.tests) == [
        ("first", "crashed", [("a", "passed"), ("", "crashed")]),
        ("second", "passed", [("c", "passed")]),
    ]


def test_plans_and_numbers_that_are_not_kept_are_said() -> None:
    """Plans and numbers that are not kept are said."""
    found = ktap.read(["KTAP version 1", "1..3", "ok 1 a", "ok 3 c"])
    assert found.problems == ("3 tests planned, 2 seen",)
    assert found.cut
    assert found.tests[1].problems == ("number 3, expected 2",)


def test_a_test_that_fails_by_itself_is_counted() -> None:
    """A test that fails though all that it is made up of passed is counted."""
    lines = ["KTAP version 1", "1..1", "  KTAP version 1", "  1..1", "  ok 1 a", "not ok 1 suite"]
    assert ktap.read(lines).counts == {"passed": 1, "failed": 1, "skipped": 0, "crashed": 0}


# Any document of the specification ------------------------------------------------------------

_NAMES = (
    st.text("abcdefgh_ 0123456789-.=", min_size=1, max_size=12)
    .map(str.strip)
    .filter(lambda name: name and not name.startswith("-"))
)
_SAID = st.sampled_from([Status.PASSED, Status.FAILED, Status.SKIPPED])
_NOISE = st.sampled_from(["", "# a diagnostic", "an unknown line", "  indented", "[    1.0] x"])


def _trees() -> st.SearchStrategy[Any]:
    leaf = st.tuples(_NAMES, _SAID, st.just([]))
    return st.lists(
        st.recursive(
            leaf,
            lambda below: st.tuples(_NAMES, _SAID, st.lists(below, min_size=1, max_size=3)),
            max_leaves=8,
        ),
        max_size=3,
    )


def _written(trees: list[Any], indent: str, noise: Iterator[str]) -> Iterator[str]:
    yield f"{indent}KTAP version 1"
    yield f"{indent}1..{len(trees)}"
    for number, (name, said, below) in enumerate(trees, 1):
        if below:
            yield from _written(below, indent + "  ", noise)
        yield next(noise)
        ok = "not ok" if said is Status.FAILED else "ok"
        yield f"{indent}{ok} {number} {name}{' # SKIP' if said is Status.SKIPPED else ''}"


def _read_back(tests: tuple[Entry, ...]) -> list[Any]:
    return [(test.name, test.said, _read_back(test.tests)) for test in tests]


@given(trees=_trees(), noise=st.lists(_NOISE, min_size=1))
@settings(max_examples=150, deadline=None)
def test_what_is_written_by_the_specification_is_read_back(
    trees: list[Any], noise: list[str]
) -> None:
    """What is written by the specification is read back, whatever stands between."""

    def forever() -> Iterator[str]:
        while True:
            yield from noise

    found = ktap.read(_written(trees, "", forever()))
    assert _read_back(found.tests) == trees
    assert not found.cut
    assert not found.problems
    again = [line for n, test in enumerate(found.tests, 1) for line in ktap.lines_of(test, n)]
    second = ktap.read(["KTAP version 1", f"1..{len(found.tests)}", *again])
    assert [test.status for _, test in second.leaves()] == [t.status for _, t in found.leaves()]
    assert [name for name, _ in second.leaves()] == [name for name, _ in found.leaves()]


_PIECES = st.sampled_from(
    [*SPECIFICATION.splitlines(), *OLD.splitlines(), "1..99999", "        ok 7", "not ok 0 # #"]
)


@given(st.lists(_PIECES | st.text(max_size=30), max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_lines_are_read(lines: list[str]) -> None:
    """Any lines are read, and what is printed of them is KTAP again."""
    found = ktap.read(lines)
    counts = found.counts
    assert sum(counts.values()) == len(list(found.leaves()))
    again = [line for n, test in enumerate(found.tests, 1) for line in ktap.lines_of(test, n)]
    second = ktap.read(["KTAP version 1", f"1..{len(found.tests)}", *again])
    assert not second.problems
    assert len(second.tests) == len(found.tests)
    assert [t.status.is_good for t in second.tests] == [t.status.is_good for t in found.tests]


def _peer() -> Any:
    """Return the kernel's own reader, from a tree that was built; skip where there is none."""
    for folder in filter(None, os.environ.get("EXECMEM_OWN_KERNELS", "").split(os.pathsep)):
        for place in sorted(Path(folder).glob("*/source/tools/testing/kunit")):
            sys.path.insert(0, str(place))
            try:
                return import_module("kunit_parser")
            finally:
                sys.path.remove(str(place))
    pytest.skip("EXECMEM_OWN_KERNELS names no folder with trees that kernels were built in")


@pytest.mark.parametrize("text", [SPECIFICATION, OLD])
def test_the_kernels_own_reader_counts_the_same(text: str) -> None:
    """The kernel's own reader counts the same."""
    peer = _peer()
    peer.stdout._output = io.StringIO()
    theirs = peer.parse_run_tests(text.splitlines())
    found = ktap.read(text.splitlines())
    ours = found.counts
    again = [line for n, test in enumerate(found.tests, 1) for line in ktap.lines_of(test, n)]
    written = ["KTAP version 1", f"1..{len(found.tests)}", *again]
    read = peer.parse_run_tests(written)
    assert {name: getattr(read.counts, name) for name in ours} == ours
    theirs = {name: getattr(theirs.counts, name) for name in ours}
    assert ours == theirs
