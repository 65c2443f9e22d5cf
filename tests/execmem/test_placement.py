# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a kernel puts regions, played again."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest

import archs
from allocator.types import ExecmemType, MemType
from execmem.check.elfwriter import A, Sec, Sym, W, X, write
from execmem.cli import main
from execmem.diffing.placement import BootLoad, place, place_runs
from loader.elf import parse
from loader.kallsyms import sizes_with_symbols
from loader.layout import plan
from loader.recording import BASE, runs
from tests.support.recorder import Made, record

PAGE = 4096


class Pages:
    """A set of taken pages; the lowest free run is found by looking at every page."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.taken: set[int] = set()

    def take(self, size: int) -> int:
        """Return the lowest address with room for `size` bytes and a guard page."""
        count = -(-size // PAGE) + 1
        page = self.start // PAGE
        while any(page + n in self.taken for n in range(count)):
            page += 1
        self.taken.update(range(page, page + count))
        return page * PAGE

    def give(self, address: int, size: int) -> None:
        """Free a region and its guard page."""
        self.taken -= set(range(address // PAGE, address // PAGE - (-size // PAGE) + 1))


class Chunks:
    """Text of x86-64 since 6.15: pages of 2 MiB blocks, which lie among the other pages."""

    def __init__(self, pages: Pages) -> None:
        self.pages = pages
        self.free: set[int] = set()

    def take(self, size: int) -> int:
        """Return the lowest address with room for `size` bytes, in a new block if need be."""
        count = -(-size // PAGE)
        for page in sorted(self.free):
            if all(page + n in self.free for n in range(count)):
                break
        else:
            blocks = -(-count // 512)
            page = -(-self.pages.start // (512 * PAGE)) * 512
            while any(page + n in self.pages.taken for n in range(512 * blocks + 1)):
                page += 512
            self.pages.taken.update(range(page, page + 512 * blocks + 1))
            self.free.update(range(page, page + 512 * blocks))
        self.free -= set(range(page, page + count))
        return page * PAGE

    def give(self, address: int, size: int) -> None:
        """Free pages of a block."""
        self.free |= set(range(address // PAGE, address // PAGE - (-size // PAGE)))


CORE = ("TEXT", "RODATA", "RO_AFTER_INIT", "DATA")


def boot(
    arch: archs.Arch, text: int, *, slide: int = 0, version: str = "6.12"
) -> tuple[list[Made], str]:
    """Return three modules where a kernel would put them, and its /proc/modules.

    The second fails to load; the third fits where the second was.
    """
    chunked = version == "7.2" and arch.name == "x86_64"
    window = arch.loads.address_map().range_of(ExecmemType.MODULE_TEXT).range
    pages = Pages(window.start + slide)
    if arch.loads.address_map().range_of(ExecmemType.BPF).range == window:
        pages.take(2 << 20)
    chunks = Chunks(pages)
    made, lines = [], []
    for number, (name, errno) in enumerate((("one", 0), ("two", 19), ("three", 0))):
        image = write(
            arch.machine,
            [
                Sec(".text", bytes(text + 5000 * number), A | X),
                Sec(".rodata", bytes(100), A),
                Sec(".data", bytes(9000 if number == 1 else 10), A | W),
                Sec(".init.text", bytes(5000), A | X),
                Sec(".init.data", bytes(4), A | W),
                Sec(".modinfo", f"vermagic={version}.9 \0".encode(), A),
            ],
            [Sym("function", ".text"), Sym("start", ".init.text")],
        )
        view = parse(image)
        layout = plan(view)
        sizes = {k: s for k, s in sizes_with_symbols(view, layout).items() if s}
        whole = {k: -(-size // PAGE) * PAGE for k, size in sizes.items()}
        regions = {}
        if version == "6.1":
            for init in (False, True):
                kinds = [MemType["INIT_" * init + n] for n in CORE if not (init and "AFTER" in n)]
                total = sum(whole.get(kind, 0) for kind in kinds)
                start = at = pages.take(total)
                for kind in kinds:
                    if kind in whole:
                        regions[kind] = (at, whole[kind])
                        at += whole[kind]
                if errno and not init:
                    failed = (start, total)
                elif init:
                    pages.give(start, total)
            if errno:
                pages.give(*failed)
        else:
            for kind in (k for k in MemType if k in sizes):
                space = chunks if chunked and kind.is_text else pages
                regions[kind] = (space.take(sizes[kind]), whole[kind])
            for kind, region in regions.items():
                if kind.is_init or errno:
                    (chunks if chunked and kind.is_text else pages).give(*region)
        addresses = {
            i: regions[p.type][0] + p.offset
            for i, p in layout.placements.items()
            if p.type in regions
        }
        made.append(
            Made(
                name=name,
                image=image,
                addresses=addresses,
                symbols={},
                relocated={i: bytes(layout.size_of(view.sections[i])) for i in addresses},
                regions={kind.name: region for kind, region in regions.items()},
                append="" if slide else "nokaslr",
                errno=errno,
            )
        )
        size = sum(size for kind, (_, size) in regions.items() if not kind.is_init)
        if not errno:
            lines.append(f"{name} {size} 0 - Live {regions[MemType.TEXT][0]:#x}")
    return made, "\n".join(reversed(lines)) + "\n"


@pytest.mark.parametrize("version", ["6.1", "6.12", "7.2"])
@pytest.mark.parametrize("slide", [0, 0x3000])
@pytest.mark.parametrize("text", [100, 5000, 20000])
def test_regions_are_predicted(
    arch: archs.Arch, tmp_path: Path, text: int, slide: int, version: str
) -> None:
    """First fit, guard pages, init memory used again, a failed load and KASLR's start.

    Also two areas of before 6.4, and blocks of text.
    """
    made, live = boot(arch, text, slide=slide, version=version)
    said = {"modules": live, "version": f"Linux version {version}.9 (x)"}
    said["load_order.json"] = json.dumps({"preloaded": ["one"], "load_order": ["two", "three"]})
    record(tmp_path / arch.name, made, boot=said, run="some")
    record(tmp_path / arch.name, made[:1])
    (placed,) = place_runs([run for run in runs(tmp_path) if run.name == "some"])
    assert placed.deviations == ()
    assert (placed.loads, placed.regions, placed.equal) == ((3, 0, 0), 15, 15)
    assert placed.slide == (slide or None)


def test_init_memory_is_held_while_others_come_in_that_init(tmp_path: Path) -> None:
    """A module that another's init asks for lies behind that one's init memory, and no later one."""
    arch = archs.arch("arm64")
    pages = Pages(arch.loads.address_map().range_of(ExecmemType.MODULE_TEXT).range.start)
    image = write(arch.machine, [Sec(".text", bytes(100), A | X)], [Sym("function", ".text")])
    sizes = {MemType.TEXT: PAGE, MemType.INIT_TEXT: 2 * PAGE}

    def take(kinds: dict[MemType, int]) -> dict[str, tuple[int, int]]:
        return {kind.name: (pages.take(size), size) for kind, size in kinds.items()}

    outer = take(sizes)
    inner = take({MemType.TEXT: PAGE})
    pages.give(*outer["INIT_TEXT"])
    later = take(sizes)
    assert later["TEXT"][0] == outer["INIT_TEXT"][0]
    made = [
        Made(name=name, image=image, addresses={}, symbols={}, relocated={}, regions=regions)
        for name, regions in (("outer", outer), ("inner", inner), ("later", later))
    ]
    record(tmp_path / arch.name, made)
    (run,) = runs(tmp_path)
    recorded = {one.name: one for one in run.recordings}
    loads = [
        BootLoad(name, False, PAGE, 0, recorded[name], None, inside)
        for name, inside in (("outer", ""), ("inner", "outer"), ("later", ""))
    ]
    assert place(run, loads).deviations == ()
    apart = [*loads[:1], attrs.evolve(loads[1], inside=""), *loads[2:]]
    assert place(run, apart).deviations


def test_a_deviation_is_shown_and_not_followed(
    arch: archs.Arch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A region elsewhere is one deviation: what comes after it is judged by itself."""
    made, live = boot(arch, 100)
    base, size = made[0].regions["RODATA"]
    far = base + (1 << 20)
    made[0].regions = {**made[0].regions, "RODATA": (far, size)}
    record(tmp_path / arch.name, made[:1], boot={"modules": live.splitlines()[-1]})
    with pytest.raises(SystemExit):
        main(["diff", "--placement", "--json", "--jobs", "1", "--oracle", str(tmp_path)])
    (placed,) = json.loads(capsys.readouterr().out)["placement"]
    (deviation,) = [d for d in placed["deviations"] if d["type"] == "RODATA"]
    assert (deviation["predicted"], deviation["recorded"]) == ([hex(base), size], [hex(far), size])
    assert placed["regions"] == 5
    with pytest.raises(SystemExit):
        main(["diff", "--placement", "--jobs", "1", "--oracle", str(tmp_path)])
    assert f"predicted {base:#x}, recorded {far:#x}" in capsys.readouterr().out


def test_a_deviation_in_a_block_is_one(tmp_path: Path) -> None:
    """Text that lies elsewhere in its block, or in another, does not move what follows."""
    arch = archs.arch("x86_64")
    made, live = boot(arch, 5000, version="7.2")
    base, size = made[0].regions["TEXT"]
    for far in (base + 0x100000, base + (64 << 20)):
        made[0].regions = {**made[0].regions, "TEXT": (far, size)}
        said = {"modules": live.splitlines()[-1], "version": "Linux version 7.2.9 (x)"}
        record(tmp_path / arch.name, made[:1], boot=said)
        (placed,) = place_runs(list(runs(tmp_path)))
        (deviation,) = [d for d in placed.deviations if d.type is MemType.TEXT]
        assert (deviation.predicted, deviation.recorded) == ((base, size), (far, size))
        assert {d.type for d in placed.deviations} <= {MemType.TEXT, MemType.INIT_TEXT}


def test_regions_of_other_kernels_are_predicted(
    other_recordings: dict[str, Path], kernels: dict[str, Path]
) -> None:
    """In every recorded boot of another release each region lies where predicted."""
    for release, folder in other_recordings.items():
        trees = (kernels[release],) if release in kernels else ()
        for placed in place_runs(list(runs(folder)), trees):
            assert placed.deviations == (), (release, placed.run)
            assert placed.equal == placed.regions > 100


def test_regions_of_a_real_boot_are_predicted(oracle: Path, corpus: Path) -> None:
    """In a boot with one CPU every recorded region lies where, and is as large as, predicted."""
    found = place_runs([run for run in runs(oracle) if run.name == BASE], (corpus,))
    (placed,) = found
    assert placed.regions > 200
    assert (placed.deviations, placed.equal) == ((), placed.regions)
