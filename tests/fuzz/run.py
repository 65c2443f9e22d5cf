# SPDX-License-Identifier: GPL-2.0-or-later
"""Feeds damaged inputs to every target: `python -m tests.fuzz.run [TARGET...] --seconds 60`.

Each input has a time limit and the process a memory limit; running out of either counts as
an escape, as does any error that is not of the ExecmemError family. An input's number and
the seed make it again, so a run needs to keep nothing but its escapes. Inputs that were
accepted join the corpus: damage then goes deeper than one step from a good file. With
`--coverage` the engine is atheris (extra `fuzz`), which prefers inputs that reach new code.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import mmap
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import FrameType

import attrs

from allocator import ExecmemError
from allocator.types import GIB

SECONDS = 10.0  # for one input; a busy machine may need a multiple of what it takes
MEMORY = 10 * GIB  # address space of the process, of which guests reserve most and touch little
CORPUS = 200  # accepted inputs that are kept
KEPT = 20  # escapes that are written down for each target


class TooSlow(BaseException):
    """An input took longer than its limit; no error that a target could handle."""


@attrs.define
class Tally:
    """What came of a target's inputs."""

    executions: int = 0
    accepted: int = 0
    refused: Counter[str] = attrs.field(factory=Counter)
    escapes: dict[str, tuple[bytes, str]] = attrs.field(factory=dict)
    escaped: int = 0
    slowest: float = 0.0
    seconds: float = 0.0


def _too_slow(_signal: int, _frame: FrameType | None) -> None:
    raise TooSlow


def once(target: str, data: bytes, random: Random, tally: Tally) -> bool:
    """Feed one input; count what comes of it, and return whether it was accepted."""
    from tests.fuzz.targets import TARGETS

    began = time.perf_counter()
    accepted = False
    handler = signal.signal(signal.SIGALRM, _too_slow)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        accepted = TARGETS[target].run(data, random)
        tally.accepted += accepted
    except ExecmemError as error:
        if "\n" in str(error).strip() and type(error).__name__ != "RelocationError":
            _escaped(tally, data, AssertionError("a message of several lines"))
        tally.refused[type(error).__name__] += 1
    except (Exception, TooSlow) as error:  # noqa: BLE001 -- to find these is what it is for
        _escaped(tally, data, error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    tally.executions += 1
    tally.slowest = max(tally.slowest, time.perf_counter() - began)
    return accepted


def _escaped(tally: Tally, data: bytes, error: BaseException) -> None:
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "message"
    where = f"{type(error).__name__} at {place}"
    tally.escaped += 1
    if where not in tally.escapes and len(tally.escapes) < KEPT:
        tally.escapes[where] = data, "".join(traceback.format_exception(error))


def limited() -> None:
    """Put this process under its limits."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


def fuzz(
    target: str, *, seed: int, seconds: float, most: int, last: mmap.mmap | None = None
) -> Tally:
    """Feed inputs until the time or the number is used up."""
    from tests.fuzz.targets import TARGETS

    chosen, tally = TARGETS[target], Tally()
    corpus = list(chosen.seeds())
    seeds = len(corpus)
    began = time.monotonic()
    number = 0
    while number < most and time.monotonic() - began < seconds:
        random = Random(f"{seed}/{target}/{number}")
        data = corpus[number] if number < seeds else random.choice(corpus)
        for _ in range(random.choice((0, 1, 1, 1, 2, 4)) if number >= seeds else 0):
            data = chosen.mutate(data, random)
        if last is not None:
            _note(last, data)
        if once(target, data, random, tally) and len(data) < 1 << 17:
            if len(corpus) < CORPUS:
                corpus.append(data)
            else:
                corpus[random.randrange(seeds, CORPUS)] = data
        number += 1
    tally.seconds = time.monotonic() - began
    return tally


def _note(last: mmap.mmap, data: bytes) -> None:
    """Keep an input for the case that the process itself dies."""
    size = min(len(data), len(last) - 8)
    last[: 8 + size] = size.to_bytes(8, "little") + data[:size]


def covered(target: str, seconds: float, corpus: Path) -> None:
    """Let atheris choose the inputs; it ends the process at the first escape."""
    import atheris

    with atheris.instrument_imports(
        include=["allocator", "archs", "loader", "emulator", "kernels", "machine"]
    ):
        from tests.fuzz.targets import TARGETS

    chosen, tally = TARGETS[target], Tally()
    where = corpus / target
    where.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(chosen.seeds()):
        (where / f"seed-{number}").write_bytes(data)

    def custom(data: bytes, limit: int, seed: int) -> bytes:
        return chosen.mutate(data, Random(seed))[:limit]

    def one(data: bytes) -> None:
        once(target, data, Random(len(data)), tally)
        if tally.escapes:
            print(json.dumps(summary(target, tally)), flush=True)
            print(next(iter(tally.escapes.values()))[1], file=sys.stderr)
            raise AssertionError(target)

    arguments = [sys.argv[0], str(where), f"-max_total_time={int(seconds)}", "-max_len=200000"]
    arguments += ["-print_final_stats=1", "-verbosity=0"]
    atheris.Setup(arguments, one, custom_mutator=custom)
    atheris.Fuzz()


def summary(target: str, tally: Tally) -> dict[str, object]:
    """Return a target's row."""
    return {
        "target": target,
        "executions": tally.executions,
        "accepted": tally.accepted,
        "refused": dict(tally.refused.most_common()),
        "escapes": tally.escaped,
        "slowest": round(tally.slowest, 3),
        "seconds": round(tally.seconds, 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz targets one after the other; return 1 when anything escaped."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run")
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--executions", type=int, default=1 << 60, help="at most, for each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--coverage", action="store_true", help="with atheris, one target")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    limited()
    if options.coverage:
        covered(options.targets[0], options.seconds, options.out / "corpus")
        return 0
    from tests.fuzz.targets import TARGETS

    failed = False
    for target in options.targets or TARGETS:
        limits = {"seconds": options.seconds, "most": options.executions}
        with (options.out / f"{target}.last").open("wb+") as file:
            file.truncate(1 << 21)
            last = mmap.mmap(file.fileno(), 1 << 21)
            tally = fuzz(target, seed=options.seed, **limits, last=last)
        print(json.dumps(summary(target, tally)), flush=True)
        for number, (where, (data, text)) in enumerate(tally.escapes.items()):
            failed = True
            (options.out / f"{target}-{number}").write_bytes(data)
            print(f"{target}-{number}: {where}\n{text}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
