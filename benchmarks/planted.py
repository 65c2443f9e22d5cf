# SPDX-License-Identifier: GPL-2.0-or-later
"""How long the fuzzer takes to each mistake of the sample parser, from an empty corpus.

python -m benchmarks.planted [ARCH...] [SEED] runs it on each architecture until it has found all five,
one minute of the processor at most, and prints seconds of it to each, and how many executions it took.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress

import archs
from execmem import Machine
from execmem.fuzzing import targets
from execmem.fuzzing.campaign import Alone, Campaign, Fuzzed
from execmem.fuzzing.engine import Finding, Search
from samples.modules import root

MINUTE = 60.0
# What is found, in which record of a file (samples/modules/src/parser.c).
PLANTED = {
    ("out-of-bounds access", "n"): "written one too far",
    ("use after free", "u"): "used after free",
    ("double free", "e"): "freed twice",
    ("hang", "l"): "endless",
    ("out-of-bounds access", "a"): "allocated too short",
}


class _All(Exception):
    """Everything was found, or it is time to end."""


def record(data: bytes) -> str:
    """Return the tag of the last record of a file."""
    at, tag = 4, "?"
    while len(data) - at >= 2 and data[at + 1] <= len(data) - at - 2:
        tag = chr(data[at])
        at += 2 + data[at + 1]
    return tag


def main(*words: str) -> None:
    """Print a line for each mistake on each architecture."""
    seed = next((int(word) for word in words if word.isdigit()), 0)
    names = [word for word in words if not word.isdigit()] or [
        each.name for each in archs.ALL if each.run is not None
    ]
    for name in names:
        machine = Machine(name, root=root(name))
        machine.load("parser")
        machine.sanitize("guard", "locks")
        target = targets.function(
            machine, "parser_parse", ("data=bytes", "size=len(data)"), "parser"
        )
        began = time.process_time()
        found: dict[str, float] = {}
        with Search(machine, target) as search:

            def keep(finding: Finding) -> None:
                what = PLANTED.get((finding.kind, record(finding.data)))
                if what is not None:
                    found.setdefault(what, time.process_time() - began)  # noqa: B023 -- called here
                if len(found) == len(PLANTED):  # noqa: B023 -- the same
                    raise _All

            def told(_now: Fuzzed) -> None:
                if time.process_time() - began > MINUTE:  # noqa: B023 -- the same
                    raise _All

            campaign = Campaign(Alone(search), list(target.seeds), seed=seed, keep=keep, told=told)
            with suppress(_All):
                campaign.run()
        for what in PLANTED.values():
            said = f"{found[what]:.1f} s" if what in found else "not found in a minute"
            print(f"{name}, seed {seed}: {what}: {said}")
        print(f"{name}, seed {seed}: {campaign.fuzzed.executions:,} executions", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
