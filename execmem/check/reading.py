# SPDX-License-Identifier: GPL-2.0-or-later
"""Text -> case. Directives stand in comments of a source, or alone in a `.case` file.

In a source: `# execmem: WORD ...`, with `execmem[ARCH ...]:` for some architectures only; the
comment may begin as any assembler or C begins one. In a `.case` file, whose first line is
`execmem case 1`, a directive has a line of its own, `[ARCH ...]` before it where it is not for
all; a line that begins with `|` is source (assembly, or what `source SUFFIX` says), and
`object ARCH TOOL` is followed by an object.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import PurePath

from archs import arch as arch_by_name
from execmem.check.case import BadCase, Case, Directive, Form, Placement

FIRST_LINE = "execmem case 1"
PACKED = ".case"
PLAIN = ".s"  # what sources of packed cases are where nothing is said
MAX_OBJECT = 1 << 26  # bytes of an unpacked object

WORDS = {
    "arch": "the architectures that the case is for",
    "flags": "options for the assembler or the compiler",
    "shared": "the body is for every architecture",
    "section": "a section and its bytes",
    "label": "a symbol in a section",
    "reloc": "a relocation",
    "at": "where a section lies",
    "symbol": "the value of a symbol",
    "place": "a link of its own, with the directives that follow",
    "checks": "whose checks: hardware or kernel",
    "errata": "CPU errata to work around",
    "stubs": "none: without PLT and GOT",
    "expect": "what must hold after the link",
    "refuse": "a relocation that must be refused",
    "run": "a function to call, and what it returns",
    "linkers": "who must agree",
}
_TEXT_WORDS = ("section", "label", "reloc")
_HEAD_WORDS = ("arch", "flags", "shared")
_SUFFIXES = {".s": Form.ASSEMBLY, ".S": Form.PREPROCESSED, ".c": Form.C, PACKED: Form.PACKED}
_COMMENT = re.compile(
    r"^\s*(?:#+|//+|/\*+|;+|@|\*)\s*execmem(?:\[([^\]]*)\])?:\s*(.*?)\s*(?:\*/)?\s*$"
)
_PLAIN = re.compile(r"^\s*(?:\[([^\]]*)\]\s*)?(\S.*?)\s*$")
_SOURCE = re.compile(r"^source\s+(\.[sSc])$")
_OBJECT = re.compile(r"^object\s+(\S+)(?:\s+(.*))?$")


def is_case_name(path: PurePath) -> bool:
    """Return whether a file's name is one that cases have."""
    return path.suffix in _SUFFIXES


def is_case(path: PurePath, text: str) -> bool:
    """Return whether a text has a directive, by whose name it is a case."""
    if path.suffix == PACKED:
        return text.startswith(FIRST_LINE)
    return path.suffix in _SUFFIXES and any(map(_COMMENT.match, text.splitlines()))


def read(path: str, text: str) -> Case:
    """Return the case that a text is; `path` names it, and its suffix says what the text is.

    BadCase names the line that means nothing.
    """
    form = _SUFFIXES.get(PurePath(path).suffix)
    if form is None:
        known = ", ".join(_SUFFIXES)
        raise BadCase(path, 0, f"is no case by its name ({known})")
    if form is Form.PACKED:
        return _read_case(path, text)
    directives = list(_in_comments(path, text))
    if not directives:
        raise BadCase(path, 0, "has no directive (a comment that begins with execmem:)")
    if any(directive.word == "shared" for directive in directives):
        form = Form.SHARED
    return _case(path, form, directives, text, suffix=PurePath(path).suffix)


def _in_comments(path: str, text: str) -> Iterator[Directive]:
    for number, line in enumerate(text.splitlines(), 1):
        found = _COMMENT.match(line)
        if found:
            yield _directive(path, number, found[1], found[2])


def _directive(path: str, line: int, archs: str | None, text: str) -> Directive:
    word, _, rest = text.partition(" ")
    if word not in WORDS:
        raise BadCase(path, line, f"no directive {word!r} (there are: {', '.join(WORDS)})")
    return Directive(line, word, rest.strip(), frozenset(_names(path, line, archs or "")))


def _names(path: str, line: int, text: str) -> Iterator[str]:
    for name in text.replace(",", " ").split():
        try:
            yield arch_by_name(name).name
        except ValueError as error:
            raise BadCase(path, line, str(error)) from None


def _read_case(path: str, text: str) -> Case:
    lines = text.splitlines()
    if not lines or lines[0].strip() != FIRST_LINE:
        raise BadCase(path, 1, f"the first line is not {FIRST_LINE!r}")
    directives: list[Directive] = []
    source: list[str] = [""]
    objects: dict[str, bytes] = {}
    tools: dict[str, str] = {}
    suffix = PLAIN
    rest = iter(enumerate(lines[1:], 2))
    for number, line in rest:
        source.append(line[2:] if line.startswith("| ") else "")
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        if line.startswith("|"):
            found = _COMMENT.match(line[1:])
            if found:
                directives.append(_directive(path, number, found[1], found[2]))
            continue
        named = _SOURCE.match(stripped)
        if named:
            suffix = named[1]
            continue
        made = _OBJECT.match(stripped)
        if made:
            (name,) = _names(path, number, made[1])
            if name in objects:
                raise BadCase(path, number, f"a second object for {name}")
            objects[name], tools[name] = _unpack(path, number, rest), made[2] or ""
            continue
        plain = _PLAIN.match(line)
        assert plain is not None  # something stands there
        directives.append(_directive(path, number, plain[1], plain[2]))
    written = [d for d in directives if d.word in _TEXT_WORDS]
    if bool(written) == bool(objects):
        both = "objects and sections, which say the same twice" if objects else "no object"
        raise BadCase(path, 0, f"has {both}")
    form = Form.TEXT if written else Form.PACKED
    return _case(path, form, directives, "\n".join(source), objects, tools, suffix)


def _unpack(path: str, line: int, rest: Iterable[tuple[int, str]]) -> bytes:
    """Return the object whose lines follow, up to `end`."""
    words: list[str] = []
    for _, text in rest:
        if text.strip() == "end":
            break
        words.append(text.strip())
    else:
        raise BadCase(path, line, "the object has no end")
    try:
        packed = base64.b64decode("".join(words), validate=True)
        engine = zlib.decompressobj()
        data = engine.decompress(packed, MAX_OBJECT)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise BadCase(path, line, f"the object is damaged ({error})") from None
    if not engine.eof:
        raise BadCase(path, line, "the object is cut short, or larger than 64 MiB")
    return data


def _case(
    path: str,
    form: Form,
    directives: list[Directive],
    source: str,
    objects: dict[str, bytes] | None = None,
    tools: dict[str, str] | None = None,
    suffix: str = PLAIN,
) -> Case:
    names: list[str] = []
    head: list[Directive] = []
    placed: list[tuple[Directive, list[Directive]]] = []
    for directive in directives:
        if directive.word == "arch":
            names += _names(path, directive.line, directive.rest)
        elif directive.word == "place":
            placed.append((directive, []))
        elif placed and directive.word not in _HEAD_WORDS:
            placed[-1][1].append(directive)
        else:
            head.append(directive)
        if not directive.rest and directive.word != "shared":
            raise BadCase(path, directive.line, f"{directive.word}: nothing follows")
    if not placed:
        found = [Placement(title="", line=0, directives=tuple(head))]
    else:
        found = [
            Placement(title=start.rest, line=start.line, directives=(*head, *own), only=start.only)
            for start, own in placed
        ]
    placements = tuple(found)
    seen: set[tuple[str, frozenset[str]]] = set()
    for placement in placements:
        if (placement.title, placement.only) in seen:
            raise BadCase(path, placement.line, f"place: a second {placement.title!r}")
        seen.add((placement.title, placement.only))
    return Case(
        path=path,
        form=form,
        placements=placements,
        archs=tuple(dict.fromkeys(names)),
        source=source,
        objects=objects or {},
        tools=tools or {},
        flags=tuple(d for d in head if d.word == "flags"),
        suffix=suffix,
    )
