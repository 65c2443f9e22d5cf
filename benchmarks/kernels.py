# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kernels: what becomes of the modules of each kernel that is there, as a page.

Modules come from `EXECMEM_KERNELS` and `EXECMEM_CORPUS`, and from trees that are named; a
kernel's image, where there is one, is given to every load (--kernel --modelled). Recordings in
`EXECMEM_ORACLE` say which bytes are those that a real kernel made.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from allocator.errors import ExecmemError
from allocator.files import write_file
from allocator.types import ExecmemType, MemType, align_up
from archs.versions import version_of
from execmem import __version__
from loader.build import Build, build_of
from loader.elf import parse
from loader.files import read_module
from loader.kernel.find import read_kernel
from loader.layout import plan
from loader.link import link_view

PAGE = Path(__file__).parent.parent / "docs" / "kernels.md"
SYMBOL = 64  # bytes between two symbols of the kernel
PERCPU = 0x2_1000

HEAD = """# Which kernels

What becomes of modules of each kernel that was given, each with what it depends on, as
`python -m benchmarks.kernels` found it with execmem {version}: a random sample of at most {most}
modules of each tree. Every other kernel is taken for what its modules say (`execmem load` tells in
a notice what that is, and what is only assumed).

* **link**: every relocation is known and in reach, at places that the kernel's own ranges hold.
* **finalise**: bytes of relocated sections, text and read-only data that differ from what a real
  kernel had in its memory when it called a module's init; over modules and boots that were
  recorded. No number: nothing was recorded. [Beside a real kernel](diff.md#result) names what
  differs; where only a hash of a section is known, all of it counts.
* **load**: accepted, under all checks of `load_module()`, with the image's exports and checksums.
* **init**: returned without an error, under the kernel that is modelled: {models}.
  The others returned an error (there is no such device), or were stopped.

| Linux | architecture | link | finalise: bytes differing | load | init | init error | stopped |
|---|---|---|---|---|---|---|---|
"""


ALONE = """
## Without their kernel

Modules of each kernel at hand, a random sample of at most {most} of each tree, when nobody gives it.
They are linked and finalised by what they tell themselves. What needs a structure of a kernel
other than the one that is modelled is stopped by name ("crypto_alg of 6.1.176 is not known; give the
kernel with --kernel"), in the module or in one that it depends on; the rest runs.

| Linux | architecture | load | init | init error | stopped: a structure | stopped: else |
|---|---|---|---|---|---|---|
"""
STRUCTURE = "unknown kernel structure"

BOOTED = """
## Booted

A random sample of at most {most} modules of each tree in their own kernel, which
[boots](howto/booting.md) in the emulator: its loader takes each after what it needs, in the machine as
it was after its boot, and runs its init (`--init --kernel PATH` of `sweep`). An init error is the
module's own answer, as on a computer without the device. The last column counts modules that the
kernel has something new of in its lists: algorithms, devices, drivers, file systems.

| Linux | architecture | init | init error | stopped | refused | registered something |
|---|---|---|---|---|---|---|
"""


@attrs.define
class Group:
    """The modules of one kernel."""

    build: Build
    files: list[Path] = attrs.field(factory=list)
    linked: int = 0
    image: Path | None = None
    outcomes: Counter[str] = attrs.field(factory=Counter)
    alone: Counter[str] = attrs.field(factory=Counter)
    booted: Counter[str] = attrs.field(factory=Counter)


def folders(variable: str) -> Iterator[Path]:
    """Yield the folders below those that a variable lists."""
    for part in os.environ.get(variable, "").split(os.pathsep):
        if part:
            yield from sorted(path for path in Path(part).iterdir() if path.is_dir())


def grouped(trees: Iterable[Path], most: int) -> dict[tuple[str, str], Group]:
    """Return what is tried, by release and architecture; one image for each, where there is one."""
    found: dict[tuple[str, str], Group] = {}
    images: dict[tuple[str, str], Path] = {}
    for tree in trees:
        try:
            kernel = read_kernel(tree)
            images[kernel.release, kernel.arch.name] = tree
        except ExecmemError:  # a tree of modules without an image
            pass
        files = sorted(tree.glob("**/lib/modules/*/**/*.ko*"))
        chosen = sorted(random.Random(0).sample(files, min(most, len(files))))
        for file in chosen:
            view = parse(read_module(file), file.name)
            build = build_of(view)
            group = found.setdefault((build.release.value, build.arch.name), Group(build))
            if file.name not in {other.name for other in group.files}:
                group.files.append(file)
                group.linked += links(file)
    for key, group in found.items():
        group.image = images.get(key)
    return found


def links(file: Path) -> bool:
    """Return whether a module links where its kernel could put it."""
    view = parse(read_module(file), file.name)
    here = view.arch.loads.address_map()
    try:
        layout = plan(view)
        at = here.range_of(ExecmemType.MODULE_TEXT).range.start
        starts = {}
        for kind in MemType:
            starts[kind] = at = align_up(at, max(4096, layout.aligns.get(kind, 1)))
            at += layout.sizes.get(kind, 0)
        places = {i: starts[p.type] + p.offset for i, p in layout.placements.items()}
        symbols = {n: here.image.start + SYMBOL * i for i, n in enumerate(view.undefined)}
        link_view(view, layout, places, symbols, percpu=_percpu(here.image.start, view.arch))
    except ExecmemError as error:
        print(f"{file.name}: {error}", file=sys.stderr)
        return False
    return True


def _percpu(image: int, arch: Any) -> int:
    """Return where a per-cpu symbol may lie: from 0 on, or in the image."""
    return PERCPU if arch.runs.emulation.percpu_from_zero else image + PERCPU


def command(*words: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON lines of a command."""
    words_of = [sys.executable, "-m", "execmem", *map(str, words), "--json"]
    done = subprocess.run(words_of, stdout=subprocess.PIPE, text=True, check=False)
    if not done.stdout:  # `diff` that finds something says so by its status, too
        raise SystemExit(done.returncode)
    yield from (
        map(json.loads, done.stdout.splitlines())
        if words[0] == "sweep"
        else [json.loads(done.stdout)]
    )


def boots(group: Group, jobs: int) -> Counter[str]:
    """Return what becomes of each module in its own kernel, and how many registered something."""
    found: Counter[str] = Counter()
    if group.image is not None:
        more = ("--jobs", str(jobs), "--kernel", group.image)
        for row in command("sweep", "--init", *more, *group.files):
            if "outcome" in row:
                found[row["outcome"]] += 1
                found["registered"] += bool(row["registered"])
    return found


def rows_booted(groups: Mapping[tuple[str, str], Group]) -> Iterator[str]:
    """Yield the rows of the table of booted kernels, by version."""
    for key in sorted(groups, key=lambda key: (groups[key].build.version.value, *key)):
        group, build, got = groups[key], groups[key].build, groups[key].booted
        if group.image is None:
            continue
        cells = (
            build.title.removeprefix("Linux "),
            build.arch.name,
            f"{got['init-ok']} of {len(group.files)}",
            *(str(got[what]) for what in ("init-error", "fault", "refused", "registered")),
        )
        yield f"| {' | '.join(cells)} |"


def sweep(group: Group, jobs: int, *, alone: bool) -> Counter[str]:
    """Load each module and run its init, in a process of its own; return what became of them."""
    found: Counter[str] = Counter()
    given = group.image is not None and not alone
    more = ("--kernel", group.image, "--modelled") if given else ()
    for row in command("sweep", "--init", "--jobs", str(jobs), *more, *group.files):
        if "outcome" in row:
            needs = alone and row["outcome"] == "fault" and STRUCTURE in row["error"]
            found["structure" if needs else row["outcome"]] += 1
    return found


def rows_alone(groups: Mapping[tuple[str, str], Group]) -> Iterator[str]:
    """Yield the rows of the table without kernels, by version."""
    for key in sorted(groups, key=lambda key: (groups[key].build.version.value, *key)):
        group, build, got = groups[key], groups[key].build, groups[key].alone
        count = len(group.files)
        cells = (
            build.title.removeprefix("Linux "),
            build.arch.name,
            f"{count - got['refused']} of {count}",
            f"{got['init-ok']} of {count}",
            *(str(got[outcome]) for outcome in ("init-error", "structure", "fault")),
        )
        yield f"| {' | '.join(cells)} |"


def compared(
    roots: Iterable[Path], jobs: int
) -> dict[tuple[tuple[int, int] | None, str], Counter[str]]:
    """Return by version and architecture how many bytes differ from what was recorded."""
    found: dict[tuple[tuple[int, int] | None, str], Counter[str]] = {}
    if not os.environ.get("EXECMEM_ORACLE"):
        return found
    places = [part for part in os.environ.get("EXECMEM_CORPUS", "").split(os.pathsep) if part]
    more = [word for place in (*places, *roots) for word in ("--root", place)]
    for document in command("diff", "--jobs", str(jobs), *more):
        for run in document["runs"]:
            row = found.setdefault((version_of(run["kernel"]), run["arch"]), Counter())
            row["boots"] += 1
            row["modules"] += run["modules"]
            row["differing"] += sum(
                run[f"{part}_bytes_differing"] for part in ("reloc", "text", "rodata")
            )
    return found


def rows(
    groups: Mapping[tuple[str, str], Group],
    recorded: Mapping[tuple[tuple[int, int] | None, str], Counter[str]],
) -> Iterator[str]:
    """Yield the table's rows, by version."""
    order = sorted(groups, key=lambda key: (groups[key].build.version.value, *key))
    for key in order:
        group, build = groups[key], groups[key].build
        if group.image is None:
            continue
        count, got = len(group.files), group.outcomes
        bytes_ = recorded.get((build.version.value, build.arch.name), Counter())
        told = f"{bytes_['differing']} ({bytes_['modules']} modules, {bytes_['boots']} boots)"
        yield " | ".join(
            (
                f"| {build.title.removeprefix('Linux ')}",
                build.arch.name,
                f"{group.linked} of {count}",
                told if bytes_ else "",
                f"{count - got['refused']} of {count}",
                f"{got['init-ok']} of {count}",
                str(got["init-error"]),
                f"{got['fault']} |",
            )
        )


def main() -> None:
    """Try everything, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, action="append", default=[], help="a tree more")
    parser.add_argument("--most", type=int, default=150, help="modules of a tree")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=PAGE)
    parser.add_argument("--alone", action="store_true", help="only the table without kernels")
    parser.add_argument("--booted", action="store_true", help="only the table of booted kernels")
    given = parser.parse_args()
    trees = [*folders("EXECMEM_KERNELS"), *folders("EXECMEM_CORPUS"), *given.root]
    groups = grouped(trees, given.most)
    models = sorted({build_of(None, arch=group.build.arch).title for group in groups.values()})
    every = not (given.alone or given.booted)
    for key, group in groups.items():
        print(*key, len(group.files), file=sys.stderr)
        if every or given.alone:
            group.alone = sweep(group, given.jobs, alone=True)
        if every or given.booted:
            group.booted = boots(group, given.jobs)
        if every:
            group.outcomes = sweep(group, given.jobs, alone=False)
    alone = ALONE.format(most=given.most) + "".join(f"{row}\n" for row in rows_alone(groups))
    booted = BOOTED.format(most=given.most) + "".join(f"{row}\n" for row in rows_booted(groups))
    if every:
        head = HEAD.format(most=given.most, models="; ".join(models), version=__version__)
        table = "".join(f"{row}\n" for row in rows(groups, compared(given.root, given.jobs)))
    else:
        head, (table, *others) = "", given.output.read_text("utf-8").split("\n## ")
        kept = {f"\n## {text}".partition("\n\n")[0]: f"\n## {text}" for text in others}
        alone = alone if given.alone else kept.get(ALONE.partition("\n\n")[0], "")
        booted = booted if given.booted else kept.get(BOOTED.partition("\n\n")[0], "")
    write_file(given.output, head + table + booted + alone)


if __name__ == "__main__":
    main()
