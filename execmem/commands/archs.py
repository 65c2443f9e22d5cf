# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem archs`: what each architecture makes different."""

from __future__ import annotations

import click

from execmem.commands.common import examples, json_option


@click.command()
@json_option
@examples(
    "execmem archs",
    "execmem archs --json",
)
def archs(as_json: bool) -> None:
    """Show what each architecture makes different."""
    from archs import archs as all_archs
    from execmem import report
    from execmem.terminal import console

    if as_json:
        report.print_json({"archs": [report.arch_json(a) for a in all_archs()]})
        return
    report.print_archs(console(), all_archs())
