# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem demo`: the lessons."""

from __future__ import annotations

import click

from execmem.commands.common import SVG, examples, json_option


@click.command()
@click.argument("name", required=False, metavar="[NAME|NUMBER]")
@click.option("--svg", type=SVG, metavar="FILE", help="write the lesson's picture, as a slide")
@json_option
@examples(
    "execmem demo",
    "execmem demo tour",
    "execmem demo 1.2",
    "execmem demo fit --svg fit.svg",
)
def demo(name: str | None, svg: str | None, as_json: bool) -> None:
    """Run a demo, or list them: a course of four chapters."""
    from allocator.errors import did_you_mean
    from execmem import report, teaching
    from execmem.terminal import console
    from samples import DEMOS, listing, named, story_of, titles

    if name is None:
        if svg is not None:
            raise click.UsageError("--svg: of which demo?")
        if as_json:
            report.print_json(listing())
            return
        teaching.print_course(console(), listing())
        return
    name = named(name)
    if name not in DEMOS and name not in titles():
        known = titles()
        near = did_you_mean(name, known)
        raise click.UsageError(f"no demo {name!r}{near}; there are {', '.join(known)}")
    story = story_of(name)
    if svg is not None:
        from allocator.files import write_file
        from execmem.picture import slide

        write_file(svg, slide(story))
    if as_json:
        report.print_json(teaching.story_document(story))
        return
    teaching.print_story(console(), story)
