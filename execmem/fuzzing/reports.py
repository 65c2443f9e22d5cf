# SPDX-License-Identifier: GPL-2.0-or-later
"""Findings for people: reports, replays, scripts that show them again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from allocator.errors import printable
from execmem.fuzzing.engine import Finding, Search, finding_of
from execmem.fuzzing.folder import INPUT, REPLAY, REPORT, SCRIPT, read_replay
from execmem.fuzzing.setting import Setting

_SCRIPT = '''\
#!/usr/bin/env python3
"""Shows a finding of execmem fuzz again: {title}."""

import json
from execmem.fuzzing.reports import again

SETTING = json.loads({setting!r})
INPUT = bytes.fromhex({data!r})

if __name__ == "__main__":
    raise SystemExit(again(SETTING, INPUT))
'''


def files(setting: Setting, finding: Finding, about: str) -> dict[str, bytes | str]:
    """Return what a finding's folder holds, by name."""
    import execmem

    replay = {
        "execmem": execmem.__version__,
        "setting": setting.plain(),
        "module_sha256": setting.digest(),
        "machine": about,
        "kind": finding.kind,
        "key": finding.key,
        "where": finding.where,
        "backtrace": list(finding.backtrace),
        "sources": list(finding.sources),
        "text": finding.text,
        "input": finding.data.hex(),
    }
    return {
        INPUT: finding.data,
        REPORT: report(replay),
        SCRIPT: _SCRIPT.format(
            title=printable(setting.title).replace('"', "'").replace("\\", "/"),
            setting=json.dumps(setting.plain()),
            data=finding.data.hex(),
        ),
        REPLAY: json.dumps(replay, indent=1),
    }


def report(replay: dict[str, Any]) -> str:
    """Return what a maintainer needs, as text."""
    setting = Setting.read(replay["setting"], REPLAY)
    data = bytes.fromhex(replay["input"])
    lines = [
        f"{replay['kind']} in {replay.get('where', '?')}",
        "",
        f"target:    {setting.title}",
        f"machine:   {replay.get('machine', '?')}",
        *([f"module:    SHA-256 {replay['module_sha256']}"] if replay.get("module_sha256") else []),
        f"execmem:   {replay.get('execmem', '?')}",
        "",
        replay["text"],
    ]
    sources = [*replay.get("sources", ()), *([""] * 99)]
    frames = [replay.get("where", "?"), *replay.get("backtrace", ())]
    if len(frames) > 1 or sources[0]:
        lines += ["", "called from:"]
        lines += [
            f"  {frame}" + (f"  {source}" if source else "")
            for frame, source in zip(frames, sources, strict=False)
        ]
    lines += ["", f"input, {len(data)} bytes:", *hexdump(data)]
    lines += ["", "again:", f"  {command(setting)}"]
    lines += ["in gdb:", "  execmem gdb replay ."]
    return "\n".join(printable(line) for line in lines) + "\n"


def hexdump(data: bytes) -> list[str]:
    """Return lines of bytes, in hex and as text."""
    found = []
    for at in range(0, len(data), 16):
        piece = data[at : at + 16]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in piece)
        found.append(f"  {at:06x}  {piece.hex(' '):<47}  {text}")
    return found or ["  (none)"]


def command(_setting: Setting) -> str:
    """Return what shows a finding again, in its folder."""
    return f"execmem fuzz replay . (or: python {SCRIPT})"


def replay(setting: Setting, data: bytes) -> tuple[Finding | None, str]:
    """Run an input on a new machine; return what goes wrong, and what was called."""
    search = setting.search()
    with search:
        return once(search, data)


def prepared(setting: Setting, data: bytes) -> tuple[Any, Callable[[], int], str]:
    """Return a new machine, what runs an input on it once just as a round does, and what is called."""
    machine = setting.open()
    target = setting.target(machine)
    rounds = machine.rounds(target.spans, instructions=setting.limit)
    target.prepare(rounds)
    return machine, target.work(rounds, data), target.described(data)


def once(search: Search, data: bytes) -> tuple[Finding | None, str]:
    """Run an input; return what goes wrong, and what was called."""
    found = search.run_one(data)
    described = search.target.described(data)
    if found.fault is None and not found.said:
        described += f" = {found.result:#x}"
    return finding_of(data, found, search.target.title), described


def again(setting: dict[str, Any], data: bytes) -> int:
    """Run a finding's input and print what goes wrong; 1 where nothing does, as for a command."""
    from execmem.streams import say

    found, described = replay(Setting.read(setting, SCRIPT), data)
    say(described)
    for line in ("nothing goes wrong",) if found is None else (found.key, f"  {found.text}"):
        say(line)
    return int(found is None)


def read(crash: str) -> tuple[dict[str, Any], Setting, bytes]:
    """Return what a finding's folder, or its replay.json, holds; BadFolder."""
    path = Path(crash)
    found = read_replay(path)
    return found, Setting.read(found["setting"], str(path)), bytes.fromhex(found["input"])
