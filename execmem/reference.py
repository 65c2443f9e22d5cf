# SPDX-License-Identifier: GPL-2.0-or-later
"""Reference pages written from the code: the command line, JSON and the architectures.

`python -m execmem.reference` writes them; a test compares the committed files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import click

from allocator.errors import printable
from allocator.files import write_file
from allocator.types import ExecmemType, size_text
from archs import Arch, archs
from execmem.cli import COMMANDS, cli
from execmem.schema import DOCUMENTS, ENVELOPE, Keys
from loader.checks import LIST, Check

JSON = """# JSON output

Written from `execmem/schema.py`, to which the tests hold every command.

With `--json` a command writes one document to stdout (`sweep` one a line), and what people
should know besides to stderr. Keys that are documented here stay; others may come.

| kind | written as |
|---|---|
| hex | a string in lower-case hex, whatever its size: `"0x0"`, `"0xffff800000000000"`; where it is signed (displacements, addends, results of a signed type) with the sign in front: `"-0x80000000"` |
| number | an integer below 2^53: counts, sizes in bytes, indices |
| fraction | a number with a fraction: seconds, shares |
| text | a string |
| bytes | a string of two lower-case hex digits a byte, without a prefix |
| true/false | `true` or `false` |
| object | an object or a list, whose keys follow |
| any | what depends on the input; it keeps the rule for numbers |

**Whatever may have 64 bits is hex**: addresses, registers, values of symbols and relocations,
addends, displacements, what a function returned. Programs that read JSON (jq, JavaScript,
spreadsheets) keep 53 bits of a number and round the others away. Where a document would need a
larger number elsewhere, the command refuses to write it. In Python `int(text, 0)` reads hex.

In a path `[]` is each element of a list, and `{}` each key that depends on the input.

"""

NO_LOAD = "-"  # what has no answer without the level load

HERE = Path(__file__).parent.parent / "docs" / "reference"


def commands() -> str:
    """Return the command line's own help, command by command."""
    parts = ["# Command line", "", "Written from the commands' own help.", ""]
    for name in COMMANDS:
        group = cli.make_context("execmem", [], resilient_parsing=True)
        command = cli.get_command(group, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=group, max_content_width=80)
        parts += [f"## {name}", "", "```text", command.get_help(context), "```", ""]
    return "\n".join(parts)


def architectures() -> str:
    """Return what makes the architectures different, side by side."""
    known = archs()
    rows: list[tuple[str, Callable[[Arch], str]]] = [
        ("ELF machine", lambda a: str(a.machine)),
        ("code model", lambda a: a.link.code_model),
        (
            "relocations applied",
            lambda a: str(sum(not r.unsupported for r in a.link.relocations.values())),
        ),
        ("window for module text", _window),
        ("fallback window", _fallback),
        ("PLT entry", lambda a: f"{a.plt.size} bytes, `{a.plt.section}`" if a.plt else "none"),
        ("CPU errata", lambda a: ", ".join(a.errata) or "none"),
        (
            "trap that fills unused text",
            lambda a: f"`{a.load.trap.hex(' ')}`" if a.load else NO_LOAD,
        ),
        ("text_poke", _poke),
    ]
    lines = [
        "# Architectures",
        "",
        "Written from the records in `archs/`.",
        "",
        f"| | {' | '.join(a.title for a in known)} |",
        "|---|" + "---|" * len(known),
        *(f"| {what} | {' | '.join(tell(a) for a in known)} |" for what, tell in rows),
        "",
        "## How far instructions get",
        "",
        "Displacements from the instruction's own address; `execmem reach` measures them.",
        "",
        "| architecture | instruction | for | reach |",
        "|---|---|---|---|",
        *(
            f"| {a.title} | `{b.mnemonic}` | {b.what} | `{b.reach}`, {b.text()} |"
            for a in known
            for b in a.link.branches
        ),
        "",
    ]
    return "\n".join(lines)


def _window(arch: Arch) -> str:
    if arch.load is None:
        return NO_LOAD
    return size_text(arch.load.address_map().range_of(ExecmemType.MODULE_TEXT).range.size)


def _fallback(arch: Arch) -> str:
    if arch.load is None:
        return NO_LOAD
    fallback = arch.load.address_map().range_of(ExecmemType.MODULE_TEXT).fallback
    return "none" if fallback is None else size_text(fallback.size)


def _poke(arch: Arch) -> str:
    poke = arch.text_poke
    if poke is None:
        return "none"
    pages = f"{poke.pages} page{'s' if poke.pages > 1 else ''} a step"
    return f"`{poke.name}`, {pages}, granules of {poke.granule}"


def json_output() -> str:
    """Return every JSON document's keys."""
    parts = [JSON + "## Every document\n", _keys(ENVELOPE)]
    for name, keys in DOCUMENTS.items():
        parts += [f"## {name}\n", _keys(keys)]
    return "\n".join(parts)


def _keys(keys: Keys) -> str:
    rows = [f"| `{path}` | {kind.value} | {meaning} |" for path, (kind, meaning) in keys.items()]
    return "\n".join(["| key | kind | what |", "|---|---|---|", *rows, ""])


LOAD_MODULE = """# What load_module checks

A kernel believes no module. `load_module()` looks at the file, at what it was built for, at its
licence and at each symbol that it uses, and refuses it with an error number and a line in the
log. execmem goes through the same checks, in the same order, against the kernel that it models:
Linux 6.12, configured as Debian 13 configures it.

| what becomes of a module | |
|---|---|
| refused | `loader.checks.Refused`, or another `LoadError`: fields `check`, `errno`, `line`; the line is in the kernel's log, too |
| taints, logged | loaded; the letter is in `Module.taints` and `Machine.taints`, the line in the log |
| noticed | loaded, with a `Notice` (`code`, `text`, `module`) in `ModuleReport.notices` and `Machine.notices`; commands write each once to stderr, and all into `notices` of their documents |
| logged | loaded; the line is in the log |
| not modelled | nobody looks, for the reason given |

## Built for another kernel

Version magic and CRCs can only be compared with something:

* **`--root TREE`** is the kernel that a module is to be loaded into. Its version magic is that of
  the tree's modules. CRCs of its exports come from a `Module.symvers` or `symvers.{gz,xz,zst}` in
  `lib/modules/VERSION` or its `build`, which also says what is GPL-only and in which namespace;
  without one, from what a few of the tree's modules were built against, `module_layout` among
  them. As in a kernel, the release does not count beside a CRC of `module_layout` that agrees.
* **`--kernel PATH`** is that kernel itself: its image says what it exports, with checksums, GPL
  marks and namespaces, and its version magic; its types how large struct module is. What its
  tree's modules export still comes from `--root`.
* **Modules that are there** have CRCs beside what they export.
* **Alone**, a module is compared with neither. If it names another kernel than the one modelled,
  it is linked and finalised as that does it; what it calls is modelled, and a notice says so. A
  module that names none is taken for one of the modelled kernel; kernels load those by force
  (CONFIG_MODULE_FORCE_LOAD=y). Of both, what needs a structure of their kernel stops by name.

`--force`, or `Machine(force=True)`, does what `modprobe --force` does: version magic and versions
count as missing, and the kernel is tainted (F). It overrides no other check.

Sample modules (`6.12.0-samples`) count as part of the modelled kernel's own tree.

## The checks

In the kernel's order; the names of functions and the lines are those of Linux 6.12 unless said
otherwise. Fields of a line are in braces.

"""


def load_module() -> str:
    """Return every check of load_module(), and what becomes of it here."""
    rows = [
        f"| `{c.name}` | {c.what} | `{c.function}` | {_said(c)} | {c.here.value} | {c.why} |"
        for c in LIST
    ]
    head = [
        "| check | what | kernel function | error and line | here | how, why |",
        "|---" * 6 + "|",
    ]
    return LOAD_MODULE + "\n".join([*head, *rows, ""])


def _said(check: Check) -> str:
    line = printable(check.line).replace("|", "\\|")
    return " ".join(part for part in (check.error, f"`{line}`" if line else "") if part)


SOLUTIONS = """# Solutions

Of the tasks of the course, from the files in `docs/solutions`, which tests hold to a pass. Each begins
with the reason. Where a task has one file for several architectures, only its line `arch = ` differs.

"""


def solutions() -> str:
    """Return the solutions of all tasks, in the order of the course."""
    from samples.course import LESSONS
    from samples.course.tasks import TASKS

    numbers = {name: placed.number for placed in LESSONS.values() for name in placed.lesson.tasks}
    parts = [SOLUTIONS]
    for name, task in TASKS.items():
        parts.append(f"## {numbers[name]} {name}\n\n{task.title}\n")
        for arch in task.archs:
            file = HERE.parent / "solutions" / f"{name}-{arch.name}{task.suffix}"
            if file.is_file():
                kind = "python" if task.suffix == ".py" else "toml"
                parts.append(f"```{kind}\n{file.read_text('utf-8')}```\n")
    return "\n".join(parts)


LESSONS_HEAD = """# The lessons

Written from `samples/course/lessons.py`, which `execmem demo` shows, too. Try to answer each question
before you run its lesson. The pictures are made by the tool: `execmem demo NAME --svg FILE`.

"""


def lessons() -> str:
    """Return every lesson: its question, its picture, its idea, what to do next."""
    from samples.course import CHAPTERS, LESSONS

    parts = [LESSONS_HEAD]
    for number, chapter in enumerate(CHAPTERS, 1):
        parts.append(f"## {number} {chapter.title}\n\n{chapter.about}\n")
        for lesson in chapter.lessons:
            placed = LESSONS[lesson.name]
            tasks = [f"`execmem course new {name}`" for name in lesson.tasks]
            parts += [
                f"### {placed.number} {lesson.name}: {lesson.title}\n",
                f"**{lesson.question}**\n",
                f"```sh\nexecmem demo {lesson.name}\n```\n",
                f"![{lesson.title}](pictures/{lesson.name}.svg)\n",
                f"*{lesson.idea}* Read [more]({lesson.read}), or try `{lesson.try_next}`.\n",
                *([f"Task: {', '.join(tasks)}.\n"] if tasks else []),
            ]
    return "\n".join(parts)


GLOSSARY = """// SPDX-License-Identifier: GPL-2.0-or-later
// Written from docs/glossary.md by `python -m execmem.reference`: word -> what it means.

export default """


def glossary() -> str:
    """Return the glossary as a module of the web page."""
    text = (HERE.parent / "glossary.md").read_text("utf-8")
    found = re.findall(
        r"^[*]{2}(.+?)[*]{2}: (.+?)$(?=\n[*]{2}|\n*\Z)", text, re.MULTILINE | re.DOTALL
    )
    words = {word: " ".join(meaning.split()) for word, meaning in found}
    return f"{GLOSSARY}{json.dumps(words, indent=2, ensure_ascii=False)};\n"


PAGES: Mapping[str, Callable[[], str]] = {
    "commands.md": commands,
    "../json.md": json_output,
    "../load-module.md": load_module,
    "architectures.md": architectures,
    "../lessons.md": lessons,
    "../solutions.md": solutions,
    "../../execmem/page/glossary.js": glossary,
}

if __name__ == "__main__":
    for name, write in PAGES.items():
        write_file(HERE / name, write())
