# SPDX-License-Identifier: GPL-2.0-or-later
"""Objects that a case writes out: what no assembler would write, in words that people read.

section .text ax 00000094            name, flags (a, w, x; m, s: strings), bytes in hex; align=N, size=N (no bytes)
                                     (00*16: sixteen of them)
label main = .text+4 func size=8     a symbol in a section, or a number; local, weak, object, func, section
label maybe = undefined weak         a symbol that need not be there
reloc .text+0 R_AARCH64_CALL26 far+4 place, type by name or number, symbol (0: none) and addend
reloc .text+0 R_X far+0 times 9      nine, each behind the one before, 8 more to the addend of each
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

from archs import Arch
from archs.dialect import Info
from execmem.check import elfwriter
from execmem.check.case import BadCase, Case, Directive, Placement
from execmem.check.values import value

WORDS = ("section", "label", "reloc")
_FLAGS = {
    "a": elfwriter.A,
    "w": elfwriter.W,
    "x": elfwriter.X,
    "m": elfwriter.MERGE,
    "s": elfwriter.STRINGS,
}
_BINDS = {"local": elfwriter.LOCAL, "weak": elfwriter.WEAK, "global": elfwriter.GLOBAL}
_TYPES = {"func": elfwriter.FUNC, "object": elfwriter.OBJECT, "section": elfwriter.SECTION}
_PLACE = re.compile(r"([.\w$-]+?)\s*(?:\+\s*(\w+))?$")
_RELOC = re.compile(
    r"(\S+(?:\s*\+\s*\w+)?)\s+(\w+)\s+([A-Za-z_.$][\w.$@]*|0)\s*([+-].*?)?(?:\s+times\s+(\w+))?$"
)
MAX_SIZE = 1 << 26  # bytes of a section
MOST_RECORDS = 1 << 20


def write(case: Case, arch: Arch, placement: Placement | None = None) -> bytes:
    """Return the object that a placement writes out for an architecture, the first by default.

    BadCase names the line that means nothing.
    """
    placement = case.placements[0] if placement is None else placement
    sections: dict[str, elfwriter.Sec] = {}
    symbols: dict[str, elfwriter.Sym] = {}
    relocations: dict[str, list[elfwriter.Rela]] = {}
    wanted: list[str] = []
    for directive in placement.of(arch.name, *WORDS):
        if directive.word == "section":
            _section(case, directive, sections)
        elif directive.word == "label":
            _label(case, directive, sections, symbols)
        else:
            where, records = _relocations(case, directive, arch, sections)
            relocations.setdefault(where, []).extend(records)
            if records[0].symbol:
                wanted.append(str(records[0].symbol))
    if not sections:
        raise BadCase(case.path, 0, f"no section is for {arch.name}")
    for name in wanted:
        symbols.setdefault(name, elfwriter.Sym(name))
    dialect = arch.link.dialect
    form = elfwriter.Form(
        bits=dialect.bits,
        order=dialect.order,
        rel=dialect.addends_in_place,
        mips64=dialect.info is Info.MIPS64,
    )
    filled = [attrs.evolve(s, relas=relocations.get(s.name, ())) for s in sections.values()]
    return elfwriter.write(arch.machine, filled, list(symbols.values()), form)


def _number(case: Case, directive: Directive, text: str) -> int:
    def unknown(name: str) -> int:
        raise ValueError(f"{name!r} is no number")

    try:
        return value(text, unknown)
    except ValueError as error:
        raise case.bad(directive.line, f"{directive.word}: {error}") from None


def _section(case: Case, directive: Directive, sections: dict[str, elfwriter.Sec]) -> None:
    name, *words = directive.rest.split()
    found = sections.get(name, elfwriter.Sec(name, flags=elfwriter.A))
    if name not in sections and words and re.fullmatch("[awxms]+", words[0]) and words[0] != "a":
        flags = sum({_FLAGS[c] for c in words.pop(0) + "a"})
        found = attrs.evolve(found, flags=flags, entry=1 if flags & elfwriter.MERGE else 0)
    elif name not in sections and words and words[0] == "a" and len(words[0]) == 1:
        words.pop(0)
    data = found.data
    for word in words:
        key, _, text = word.partition("=")
        if key in ("align", "size") and text:
            number = _number(case, directive, text)
            if number > MAX_SIZE:
                raise case.bad(directive.line, f"section: {key} is over 64 MiB")
            if key == "align":
                found = attrs.evolve(found, align=number)
            else:
                found = attrs.evolve(found, type=elfwriter.NOBITS, size=number)
            continue
        text, times, count = word.partition("*")
        number = _number(case, directive, count) if times else 1
        try:
            once = bytes.fromhex(text)
            if number * len(once) > MAX_SIZE:
                raise case.bad(directive.line, "section: over 64 MiB")
            data += once * number
        except ValueError:
            raise case.bad(
                directive.line, f"section: {word!r} is neither bytes nor a flag"
            ) from None
    sections[name] = attrs.evolve(found, data=data)


def _place(
    case: Case, directive: Directive, text: str, sections: Mapping[str, elfwriter.Sec]
) -> tuple[str, int]:
    found = _PLACE.match(text.strip())
    if found is None or found[1] not in sections:
        known = ", ".join(sections) or "none yet"
        raise case.bad(
            directive.line, f"{directive.word}: no section at {text!r} (there is {known})"
        )
    return found[1], _number(case, directive, found[2] or "0")


def _label(
    case: Case,
    directive: Directive,
    sections: Mapping[str, elfwriter.Sec],
    symbols: dict[str, elfwriter.Sym],
) -> None:
    name, equals, rest = directive.rest.partition("=")
    name = name.strip()
    words = rest.split()
    if not equals or not words or not name:
        raise case.bad(directive.line, "label: NAME = SECTION+OFFSET, or NAME = NUMBER")
    symbol = elfwriter.Sym(name)
    options = [w for w in words if w in _BINDS or w in _TYPES or w.startswith("size=")]
    where = " ".join(w for w in words if w not in options)
    for word in options:
        if word in _BINDS:
            symbol = attrs.evolve(symbol, bind=_BINDS[word])
        elif word in _TYPES:
            symbol = attrs.evolve(symbol, type=_TYPES[word])
        else:
            symbol = attrs.evolve(symbol, size=_number(case, directive, word[len("size=") :]))
    if where == "undefined":
        pass
    elif where[:1].isdigit() or where[:1] in "+-":
        symbol = attrs.evolve(symbol, section=elfwriter.ABS, value=_number(case, directive, where))
    else:
        section, offset = _place(case, directive, where, sections)
        symbol = attrs.evolve(symbol, section=section, value=offset)
    if name in symbols:
        raise case.bad(directive.line, f"label: a second {name}")
    symbols[name] = symbol


def _relocations(
    case: Case, directive: Directive, arch: Arch, sections: Mapping[str, elfwriter.Sec]
) -> tuple[str, list[elfwriter.Rela]]:
    found = _RELOC.match(directive.rest)
    if found is None:
        raise case.bad(directive.line, "reloc: SECTION+OFFSET TYPE SYMBOL [+ ADDEND] [times COUNT]")
    section, offset = _place(case, directive, found[1], sections)
    number = type_number(case, directive, arch, found[2])
    addend = _number(case, directive, found[4] or "0")
    addend -= (addend >> 63) << 64
    count = _number(case, directive, found[5]) if found[5] else 1
    if not 0 < count <= MOST_RECORDS:
        raise case.bad(directive.line, f"reloc: times 1 to {MOST_RECORDS}")
    row = arch.link.relocations.get(number)
    size = max(row.size if row is not None else 0, 1)
    word = arch.link.dialect.word
    symbol = 0 if found[3] == "0" else found[3]
    return section, [
        elfwriter.Rela(offset + n * size, number, symbol, addend + n * word) for n in range(count)
    ]


def type_number(case: Case, directive: Directive, arch: Arch, text: str) -> int:
    """Return the number of a relocation by its name, or as it stands; BadCase: there is none."""
    if text.isdigit() or text.startswith("0x"):
        return _number(case, directive, text)
    for number, row in arch.link.relocations.items():
        if row.name == text:
            return number
    raise case.bad(directive.line, f"{directive.word}: {arch.name} has no relocation {text}")
