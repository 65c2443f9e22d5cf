# SPDX-License-Identifier: GPL-2.0-or-later
"""What sections and instructions of a module show of the kernel that it was built for.

Configuration, version magic and compilers may be silent, or wrong; the bytes are what will run.
A mark is one row: a fact, the value that it is shown to have, what shows it, and the options and
versions that bring it, so that whoever knows those can be held to it. Of the rows of a fact the
first that is shown counts. What a module does not show it says nothing of: a module without
returns has no table of them.

Not among them is FineIBT: no file has it, a kernel with CONFIG_FINEIBT makes it of kCFI's
preambles while it loads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TypeAlias

import attrs

from archs.versions import Version

SITES = "__patchable_function_entries"


@attrs.frozen
class Site:
    """An entry of the tracer's table of a function that a compiler made.

    Parameters
    ----------
    function
        Bytes from the site on to where the function begins.
    code
        What stands at the function's entry.
    """

    function: int
    code: bytes


@attrs.frozen(kw_only=True)
class Evidence:
    """What of a module's file is looked at.

    Parameters
    ----------
    sections
        Names of those that hold something.
    undefined
        Names of symbols that it needs of others.
    modinfo
        Its `.modinfo`.
    has_name
        Returns whether a symbol's name begins so.
    entries, ends
        The first and the last bytes of some of its functions.
    sites
        Some of those that the table of the tracer names.
    words
        Returns the bytes of a section, and the offsets in it that relocations name.
    """

    sections: AbstractSet[str]
    undefined: AbstractSet[str]
    modinfo: Mapping[str, str]
    has_name: Callable[[bytes], bool]
    entries: Sequence[bytes]
    ends: Sequence[bytes]
    sites: Sequence[Site]
    words: Callable[[str], tuple[int, AbstractSet[int]]]


Shown: TypeAlias = Callable[[Evidence], bool]


@attrs.frozen(kw_only=True)
class Mark:
    """One value that a fact may be shown to have.

    Parameters
    ----------
    fact, value
        In a few words.
    shown
        Whether a module shows it.
    instructions
        Whether instructions show it, or sections and symbols.
    options
        Options of the configuration of which one must be on for it.
    without
        Options of which none may be on.
    since, until
        The first version that has it, and the first that has it no more.
    """

    fact: str
    value: str
    shown: Shown
    instructions: bool = False
    options: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    since: Version = (0, 0)
    until: Version | None = None

    def against(self, config: Mapping[str, str]) -> str:
        """Return what of a configuration says something else; empty: nothing."""
        on = [name for name in self.without if config.get(name) == "y"]
        if on:
            return f"{on[0]}=y"
        missing = self.options and not any(config.get(name) == "y" for name in self.options)
        return f"no {' or '.join(self.options)}" if missing else ""

    def in_version(self, version: Version) -> bool:
        """Return whether kernels of a version may have it."""
        return self.since <= version and (self.until is None or version < self.until)


def section(name: str) -> Shown:
    """Return what looks for a section."""
    return lambda evidence: name in evidence.sections


def needs(name: str, *others: str) -> Shown:
    """Return what looks for a symbol that is needed, where none of the others is."""
    return lambda e: name in e.undefined and not e.undefined & {*others}


def tag(name: str, value: str) -> Shown:
    """Return what looks for a tag of `.modinfo`."""
    return lambda evidence: evidence.modinfo.get(name) == value


def begins(code: bytes) -> Shown:
    """Return what looks for a function that begins so."""
    return lambda evidence: any(entry.startswith(code) for entry in evidence.entries)


def ends(code: bytes, padding: bytes) -> Shown:
    """Return what looks for a function that ends so, before any padding."""
    return lambda evidence: any(end.rstrip(padding).endswith(code) for end in evidence.ends)


def entry_at(distance: int) -> Shown:
    """Return whether the tracer's sites lie so many bytes before their functions; most must."""

    def shown(evidence: Evidence) -> bool:
        there = sum(site.function == distance for site in evidence.sites)
        return there * 2 > len(evidence.sites)

    return shown


def traced(code: bytes, within: int) -> Shown:
    """Return what looks for an instruction among the first bytes of functions a compiler made."""

    def shown(evidence: Evidence) -> bool:
        starts = range(0, within, len(code))
        return any(
            site.code[at : at + len(code)] == code for site in evidence.sites for at in starts
        )

    return shown


def entries_of(name: str, size: int, relocated: tuple[int, ...]) -> Shown:
    """Return what looks for a table of such entries, by which of their words are relocated."""

    def shown(evidence: Evidence) -> bool:
        whole, found = evidence.words(name)
        wanted = {start + at for start in range(0, whole, size) for at in relocated}
        return bool(whole) and whole % size == 0 and found == wanted

    return shown


def _kcfi(evidence: Evidence) -> bool:
    # Types of functions whose addresses are taken; on x86-64 the preamble has a name of its own.
    named = (evidence.has_name(start) for start in (b"__kcfi_typeid_", b"__cfi_"))
    return ".kcfi_traps" in evidence.sections or any(named)


# Of every architecture. Clang's older form jumped through tables of its own (CONFIG_CFI_CLANG, too).
KCFI = Mark(
    fact="indirect calls are checked",
    value="kCFI, a type word in front of each function",
    shown=_kcfi,
    options=("CONFIG_CFI", "CONFIG_CFI_CLANG"),
    since=(6, 1),
)
PROTECTED = ("CONFIG_STACKPROTECTOR",)
GLOBAL_GUARD = Mark(
    fact="stack guard",
    value="the global __stack_chk_guard",
    shown=needs("__stack_chk_guard"),
    options=PROTECTED,
    without=("CONFIG_STACKPROTECTOR_PER_TASK",),
)
TASK_GUARD = Mark(
    fact="stack guard",
    value="in the task",
    shown=needs("__stack_chk_fail", "__stack_chk_guard"),
    options=("CONFIG_STACKPROTECTOR_PER_TASK",),
)
CALL_OPS = Mark(
    fact="function entries",
    value="CALL_OPS, a literal in front of each function",
    shown=entry_at(8),
    instructions=True,
    options=("CONFIG_DYNAMIC_FTRACE_WITH_CALL_OPS",),
    since=(6, 3),
)
PLAIN_ENTRY = Mark(
    fact="function entries",
    value="NOPs at each function",
    shown=entry_at(0),
    instructions=True,
    without=("CONFIG_DYNAMIC_FTRACE_WITH_CALL_OPS",),
)
