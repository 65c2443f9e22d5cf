# SPDX-License-Identifier: GPL-2.0-or-later
"""What `execmem fuzz` does and shows."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from execmem import report
from execmem.fuzzing import reports
from execmem.fuzzing.campaign import Campaign, Fuzzed
from execmem.fuzzing.engine import Finding
from execmem.fuzzing.folder import BadFolder, Folder, read_input
from execmem.fuzzing.mutate import Mutator
from execmem.fuzzing.setting import Setting
from execmem.fuzzing.workers import Workers
from execmem.streams import say
from execmem.terminal import Meter
from machine.rounds import INSTRUCTIONS


def fuzz(module: str, function: str, options: Mapping[str, Any], *, executions: int) -> int:
    """Fuzz, and say what was found."""
    chosen = [bool(function), *(bool(options[name]) for name in ("device", "syscall", "harness"))]
    if sum(chosen) != 1:
        raise click.UsageError("expected one of FUNCTION, --device, --syscall and --harness")
    setting = Setting.of(
        options,
        module=str(Path(module).resolve()) if Path(module).is_file() else module,
        function=function,
        inputs=tuple(options["inputs"]),
        device=options["device"] or "",
        operation=options["operation"],
        syscall=options["syscall"] or "",
        harness=_absolute(options["harness"] or ""),
        checks=() if options["sanitize"] == "none" else tuple(options["sanitize"].split(",")),
        exact=options["exact"],
        limit=options["limit"] or INSTRUCTIONS,
    )
    machine = setting.open()  # what is wrong is told here, and once; workers find it booted
    target = setting.target(machine)
    about = f"{machine.models}, {machine.arch.name}"
    options = {**options, "models": machine.models}
    del machine
    out = options["out"]
    folder = None if out is None else Folder(out, setting.plain())
    most = options["executions"]
    if most is None and options["duration"] is None:
        most = executions
    mutator = Mutator(target.most, target.fields, target.words)
    seeds = inputs_of(options["corpora"]) or list(target.seeds)
    names: dict[str, Path] = {}
    jobs = options["jobs"]
    crew: Any
    if options["scheduler"] is None:
        crew = closing(Workers(setting, jobs, mutator, options["sandbox"]))
    else:
        from execmem.fuzzing.cluster import Cluster

        address = options["scheduler"]
        crew = Cluster(setting, jobs, mutator, options["sandbox"], address=address)
    with Meter() as meter, crew as workers:

        def keep(finding: Finding) -> None:
            if folder is None:
                return
            files = reports.files(setting, finding, about)
            try:
                names[finding.key] = folder.crash(finding, files)
            except BadFolder:  # it is told at least
                campaign.fuzzed.crashes.append(finding)
                raise

        def told(now: Fuzzed) -> None:
            found = f"{len(now.seen):,} {'edges' if setting.exact else 'blocks'}, corpus {len(now.corpus)}"
            what = f"{now.rate:,.0f}/s, {found}, {len(now.crashes)} crashes, executions"
            meter.show(what, now.executions, most)

        campaign = Campaign(
            workers,
            seeds,
            seed=options["seed"],
            executions=most,
            seconds=options["duration"],
            keep=keep,
            told=told,
            folder=folder,
        )
        meter.show("executions", 0, most)
        try:
            found = campaign.run()
        except (KeyboardInterrupt, BadFolder):
            _show(setting, campaign.fuzzed, names, options)
            raise
    _show(setting, found, names, options)
    return int(bool(found.crashes))


def inputs_of(paths: tuple[str, ...]) -> list[bytes]:
    """Return the inputs in files, and in the files of folders."""
    found = []
    for each in map(Path, paths):
        inside = sorted(p for p in each.iterdir() if p.is_file()) if each.is_dir() else [each]
        found += [read_input(path) for path in inside]
    return found


def _absolute(harness: str) -> str:
    path, colon, name = harness.rpartition(":")
    return f"{Path(path).resolve()}:{name}" if colon else harness


def _show(
    setting: Setting, found: Fuzzed, names: Mapping[str, Path], options: Mapping[str, Any]
) -> None:
    if options["as_json"]:
        report.print_json(
            {
                "target": setting.title,
                "models": options["models"],
                "seed": options["seed"],
                "executions": found.executions,
                "seconds": round(found.seconds, 3),
                "coverage": "edges" if setting.exact else "blocks",
                "covered": len(found.seen),
                "corpus": [data.hex() for data in found.corpus],
                "crashes": [_crash_json(each, names) for each in found.crashes],
                "lacking": [each.text for each in found.lacking],
                "spoiled": found.spoiled or None,
            }
        )
        return
    for each in found.crashes:
        say(f"{each.key}")
        say(f"  {each.text}")
        shown = each.data[:32].hex(" ") + (" ..." if len(each.data) > 32 else "")
        say(f"  input: {len(each.data)} bytes: {shown}".rstrip(": "))
        if each.key in names:
            say(f"  kept: {names[each.key]}")
    for each in found.lacking:
        say(f"inputs ended where this kernel does: {each.text}", err=True)
    if found.spoiled:
        say(f"machines were set up anew: {found.spoiled}")
    what = "edges" if setting.exact else "blocks"
    say(
        f"{setting.title}: {found.executions:,} executions, {len(found.seen):,} {what}, "
        f"corpus {len(found.corpus)}, {len(found.crashes)} found"
    )


def _crash_json(each: Finding, names: Mapping[str, Path]) -> dict[str, Any]:
    return {
        "kind": each.kind,
        "key": each.key,
        "where": each.where,
        "backtrace": list(each.backtrace),
        "text": each.text,
        "input": each.data.hex(),
        "folder": str(names[each.key]) if each.key in names else None,
    }


def again(what: str, crash: str, *, as_json: bool) -> int:
    """Run a finding's input again, or show what is known of it; 1 where nothing goes wrong."""
    known, setting, data = reports.read(crash)
    if what == "report":
        if as_json:
            report.print_json({"replay": known})
        else:
            for line in reports.report(known).splitlines():
                say(line)
        return 0
    found, described = reports.replay(setting, data)
    same = found is not None and found.key == known["key"]
    if as_json:
        report.print_json(
            {
                "call": described,
                "same": same,
                "key": None if found is None else found.key,
                "text": None if found is None else found.text,
            }
        )
        return int(not same)
    say(described)
    for line in ("nothing goes wrong",) if found is None else (found.key, f"  {found.text}"):
        say(line)
    if found is not None and not same:
        say(f"which is another than {known['key']}")
    return int(not same)
