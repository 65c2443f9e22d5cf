# SPDX-License-Identifier: GPL-2.0-or-later
"""RUN lines: words without a shell, and what a shell would be needed for is refused by name."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execmem.check.jitlink import lit

WORDS = {"s": "/in/a file.s", "t": "/out/a.tmp", "S": "/in", "p": "/in", "%": "%"}


def commands(*lines: str) -> list[lit.Command]:
    """Return the commands of RUN lines."""
    return list(lit.read("".join(f"# RUN: {line}\n" for line in lines), WORDS).commands)


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("llvm-mc -o %t.o %s", [("llvm-mc", "-o", "/out/a.tmp.o", "/in/a file.s")]),
        ('a \'b c\' "d\\"e" f\\ g h="i j"', [("a", "b c", 'd"e', "f g", "h=i j")]),
        ("a 2>&1 | b -x", [("a",), ("b", "-x")]),
        ("a 2>&1| b", [("a",), ("b",)]),
        ("a %S/Inputs/x.s 100%%", [("a", "/in/Inputs/x.s", "100%")]),
        ("a %t-1 %t_2 %t1", [("a", "/out/a.tmp-1", "/out/a.tmp_2", "/out/a.tmp1")]),
        ("test -f %t/*", [("test", "-f", "/out/a.tmp/*")]),
    ],
)
def test_words(text: str, stages: list[tuple[str, ...]]) -> None:
    """Quotes go, substitutions stay one word, pipes are stages."""
    (command,) = commands(text)
    assert (command.problem, list(command.stages)) == ("", stages)


def test_lines_go_on() -> None:
    """A backslash goes on in the next RUN line, whatever stands between; && separates."""
    text = "// RUN: rm -rf %t && mkdir -p \\\n  code\n// RUN:   %t\n# RUN: true\n# REQUIRES: a, b\n"
    script = lit.read(text, WORDS)
    assert [(one.line, one.stages) for one in script.commands] == [
        (1, (("rm", "-rf", "/out/a.tmp"),)),
        (1, (("mkdir", "-p", "/out/a.tmp"),)),
        (4, (("true",),)),
    ]
    assert script.requires == ("a", "b")
    (command,) = commands("a \\")
    assert "goes on" in command.problem


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a; b", "; in a RUN line"),
        ("a > %t", "> in a RUN line"),
        ("a < b", "< in a RUN line"),
        ("a || b", "|| in a RUN line"),
        ("a $(b)", "$ in a RUN line"),
        ("a `b`", "` in a RUN line"),
        ('a "$b"', "$ in a RUN line"),
        ("a &", "& in a RUN line"),
        ("(a)", "( in a RUN line"),
        ("a 'b", "' in a RUN line has no end"),
        ("%lli a", "substitution %lli"),
        ("a %{x}", "substitution %{x}"),
        ("a %shlib", "substitution %shlib"),
        ("a | | b", "a command has no words"),
        ("| b", "a command has no words"),
    ],
)
def test_refused(text: str, reason: str) -> None:
    """What only a shell, or only LLVM's own build, could do is not understood."""
    (command,) = commands(text)
    assert reason in command.problem
    assert not command.stages


@given(st.lists(st.text(alphabet="ab'\"\\|&%st{} \t;$#RUN:\n", max_size=20), max_size=6))
def test_any_text(lines: list[str]) -> None:
    """Any text is read; what is understood has words, and what is not says why."""
    script = lit.read("".join(f"RUN: {line}\n" for line in lines), WORDS)
    for command in script.commands:
        assert bool(command.stages) is not bool(command.problem)
        assert all(command.stages)


@given(
    st.lists(
        st.text(
            st.characters(codec="ascii", exclude_characters="\n\r%\x0b\x0c\x1c\x1d\x1e\x00"),
            min_size=1,
            max_size=9,
        ),
        min_size=1,
        max_size=5,
    )
)
def test_quoted_as_python_quotes(words: list[str]) -> None:
    """Words that another program quoted for a shell come back as they were."""
    text = shlex.join(words)
    if text.endswith("\\"):
        return  # goes on
    (command,) = commands(text)
    assert command.stages == (tuple(words),)


def test_checks() -> None:
    """Checks begin a line behind `# `, as llvm-jitlink finds them, and are joined."""
    text = "  # jitlink-check: a = \\\n# jitlink-check:   b\n// jitlink-check: no\n# other: c = d\n"
    assert list(lit.rules(text, "jitlink-check")) == [(1, "a = b")]
    assert list(lit.rules(text, "other")) == [(4, "c = d")]


def test_file_check() -> None:
    """Patterns are found by their prefix, and what must not be there is none of them."""
    text = "# CHECK: one\n# CHECK-NEXT: two\n# CHECK-NOT: three\n# MY-CHECK: four\n"
    assert lit.check_lines(text, ("CHECK",)) == [(1, "one"), (2, "two")]
    assert lit.check_lines(text, ("MY-CHECK",)) == [(4, "four")]
