# SPDX-License-Identifier: GPL-2.0-or-later
"""Reference pages written from the code: the command line and the architectures.

`python -m execmem.reference` writes them; a test compares the committed files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import click

from allocator.types import ExecmemType, size_text
from archs import Arch, archs
from execmem.cli import COMMANDS, cli

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
        ("code model", lambda a: a.code_model),
        (
            "relocations applied",
            lambda a: str(sum(not r.unsupported for r in a.relocations.values())),
        ),
        ("window for module text", _window),
        ("fallback window", _fallback),
        ("PLT entry", lambda a: f"{a.plt.size} bytes, `{a.plt.section}`" if a.plt else "none"),
        ("CPU errata", lambda a: ", ".join(a.errata) or "none"),
        ("trap that fills unused text", lambda a: f"`{a.trap.hex(' ')}`"),
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
            f"| {a.title} | `{b.mnemonic}` | {b.what} | `{b.reach}`, {b.reach.text()} |"
            for a in known
            for b in a.branches
        ),
        "",
    ]
    return "\n".join(lines)


def _window(arch: Arch) -> str:
    return size_text(arch.address_map().range_of(ExecmemType.MODULE_TEXT).range.size)


def _fallback(arch: Arch) -> str:
    fallback = arch.address_map().range_of(ExecmemType.MODULE_TEXT).fallback
    return "none" if fallback is None else size_text(fallback.size)


def _poke(arch: Arch) -> str:
    poke = arch.text_poke
    if poke is None:
        return "none"
    pages = f"{poke.pages} page{'s' if poke.pages > 1 else ''} a step"
    return f"`{poke.name}`, {pages}, granules of {poke.granule}"


PAGES: Mapping[str, Callable[[], str]] = {
    "commands.md": commands,
    "architectures.md": architectures,
}

if __name__ == "__main__":
    for name, write in PAGES.items():
        (HERE / name).write_text(write(), "utf-8")
