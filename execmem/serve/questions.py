# SPDX-License-Identifier: GPL-2.0-or-later
"""What a page may ask: command lines, by a list of what each may have.

A list of what is allowed, as options come that read or write files. The fence would refuse those,
where the host can have one; here they are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import click

from allocator.errors import ExecmemError, printable

WORDS = 64  # of a question
KERNEL = "kernel:"  # the kernel that the server was given; no file that is dropped has this name
LONGEST = 1 << 14  # characters of a word

_LOADING = (
    "arch design kaslr seed heap-limit no-text-poke param stub checks erratum kasan with-plt force"
    " constructors instructions unknown"
)
# Command -> the options that a page may give; each gets --json.
ASKABLE: dict[str, frozenset[str]] = {
    name: frozenset(f"--{word}" for word in words.split())
    for name, words in {
        "archs": "",
        "reach": "arch",
        "load": f"{_LOADING} kernel init",
        "run": f"{_LOADING} kernel no-init returns sanitize",
        "trace": f"{_LOADING} kernel no-init returns also args memory limit",
        "probe": f"{_LOADING} kernel no-init returns hits registers",
        "relocs": f"{_LOADING} section type symbol limit",
        "functions": "",
        "disasm": _LOADING,
        "types": "",
        "explain": f"{_LOADING} kernel no-init also",
        "compare": "workload arch design kaslr page-size no-text-poke check list film closely cpus",
        "kernel": "config type symbol ptdump",
        "demo": "",
        "course": "arch number",
        "race": "arch graph",
    }.items()
}


class NotAsked(ExecmemError):
    """A question that no page may ask.

    Parameters
    ----------
    why
        What is wrong with it.
    """

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(f"not a question of a page: {why}")


def checked(words: object) -> tuple[str, ...]:
    """Return the words of a question, with --json; NotAsked where a page may not ask it.

    Parameters
    ----------
    words
        What came: a list of strings, as a terminal would have them.
    """
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise NotAsked("expected a list of words")
    if not words or len(words) > WORDS or max(map(len, words)) > LONGEST:
        raise NotAsked(f"expected 1 to {WORDS} words of at most {LONGEST} characters")
    command, *rest = words
    if command not in ASKABLE:
        raise NotAsked(f"no command {printable(command[:40])!r}; there are {', '.join(ASKABLE)}")
    for option, value in _options(command, rest):
        if option and option not in ASKABLE[command]:
            raise NotAsked(f"{command} has no {printable(option[:40])} here")
        if option == "--kernel" and value != KERNEL:
            raise NotAsked(f"the only kernel is {KERNEL}")
        _harmless(option, value)
    return (command, "--json", *rest)


def _options(command: str, words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield options with their values as click will see them; arguments with an empty name.

    Raises
    ------
    NotAsked
        What click might read in two ways.
    """
    takes = _takes_value(command)
    rest = iter(words)
    for word in rest:
        if word == "--":
            yield from (("", argument) for argument in rest)
        elif word.startswith("--"):
            option, equals, value = word.partition("=")
            if not equals and takes.get(option):
                value = next(rest, "")
            yield option, value
        elif re.match(r"-[^0-9]", word):
            raise NotAsked(f"{printable(word[:40])}: options are written in full")
        else:
            yield "", word


def _takes_value(command: str) -> dict[str, bool]:
    """Return, of each long option of a command, whether a value follows it."""
    from execmem.cli import cli

    context = cli.make_context("execmem", [], resilient_parsing=True)
    found = cli.get_command(context, command)
    assert found is not None
    return {
        name: not param.is_flag
        for param in found.params
        if isinstance(param, click.Option)
        for name in param.opts
    }


def _harmless(option: str, value: str) -> None:
    """Refuse words that name files of the host."""
    if value.startswith("file:"):
        raise NotAsked("file: names a file of the host")
    if "\0" in value:
        raise NotAsked("a word with a NUL byte")
    text = option in ("--param", "--stub") or value.startswith(("str:", "hex:"))
    if not text and ("/" in value or value in (".", "..", "running", "auto")):
        raise NotAsked(f"{printable(value[:40])!r} names a file of the host; drop it on the page")
