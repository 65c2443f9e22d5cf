# SPDX-License-Identifier: GPL-2.0-or-later
"""Recordings on disk, whole and with parts missing."""

from __future__ import annotations

import io
import json
import lzma
import tarfile
from pathlib import Path

import pytest

import archs
from allocator.types import MemType
from execmem.check.elfwriter import A, Sec, Sym, X, write
from loader import recording as recording_module
from loader.errors import BadModule
from loader.recording import Recording, image_of, runs
from tests.support.recorder import Made, record

TEXT = 0xFFFF_FFFF_C020_1000


def made(arch: archs.Arch, name: str = "tiny", **other) -> Made:
    """Return a module of one section whose bytes finalisation turns around."""
    image = write(arch.machine, [Sec(".text", b"\1\2\3\4", A | X)], [Sym("outside")])
    return Made(
        name=name,
        image=image,
        addresses={1: TEXT},
        symbols={"outside": TEXT + 0x100},
        relocated={1: b"\1\2\3\4"},
        final={1: b"\4\3\2\1"},
        regions={"TEXT": (TEXT, 4096)},
        **other,
    )


def test_a_recording_is_read(arch: archs.Arch, tmp_path: Path) -> None:
    """Sections, symbols, regions, both points' bytes and the image come back."""
    module = made(arch)
    folder = record(tmp_path / arch.aliases[0], [module], boot={"cpuinfo": "processor\t: 0\n"})
    (run,) = runs(tmp_path)
    assert (run.arch_name, run.name, run.boot.cpu) == (arch.name, "base", {"processor": "0"})
    (recording,) = run.recordings
    (section,) = recording.sections
    assert (section.name, section.address, section.size) == (".text", TEXT, 4)
    assert recording.symbols == {"outside": TEXT + 0x100}
    assert recording.regions == {MemType.TEXT: (TEXT, 4096)}
    assert recording.raw() == (b"\1\2\3\4", b"\5\1\1\5")
    assert image_of(recording) == module.image
    assert [r.recordings for r in runs(folder)] == [run.recordings]


def test_missing_parts_are_none(arch: archs.Arch, tmp_path: Path) -> None:
    """Without raw bytes, files and boot folder the JSON is enough; a tree may have the file."""
    module = made(arch)
    record(tmp_path / arch.name, [module], raw=False, files=False)
    record(tmp_path / arch.name, [module], run="other", raw=False, files=False)
    assert [run.name for run in runs(tmp_path)] == ["base", "other"]
    assert [run.name for run in runs(tmp_path, ("other",))] == ["other"]
    (_, run) = runs(tmp_path)
    (recording,) = run.recordings
    assert recording.raw() == (None, None)
    assert image_of(recording) is None
    assert (run.boot.cpuinfo, run.boot.model, run.live) == ("", "max", ())
    tree = tmp_path / "tree" / "kernel"
    tree.mkdir(parents=True)
    (tree / "tiny.ko").write_bytes(b"\x7fELF of another build")
    assert image_of(recording, (tmp_path / "tree",)) is None
    (tree / "tiny.ko").write_bytes(module.image)
    assert image_of(recording, (tmp_path / "tree",)) == module.image


@pytest.mark.parametrize("slide", [0, 0x1234_5000])
def test_kernel_symbols_move_with_the_kernel(arch: archs.Arch, tmp_path: Path, slide: int) -> None:
    """One symbol that a module refers to says how far KASLR moved all; modules' are left out."""
    kallsyms = f"{TEXT + 0x100:016x} T outside\n{TEXT + 0x200:016x} D inside\n"
    kallsyms += f"{TEXT + 0x300:016x} t strange\t[tiny]\n00000000000000a0 A percpu\n"
    boot = {"kallsyms.end.xz": kallsyms}
    record(tmp_path / arch.name, [made(arch)], boot=boot)
    module = made(arch)
    module.symbols = {"outside": TEXT + 0x100 + slide}
    record(tmp_path / arch.name, [module], run="kaslr")
    (_, run) = runs(tmp_path)
    assert run.kernel_symbols == {
        "outside": TEXT + 0x100 + slide,
        "inside": TEXT + 0x200 + slide,
        "percpu": 0xA0,
    }


def test_damage_is_refused_by_name(arch: archs.Arch, tmp_path: Path) -> None:
    """What is no JSON, lacks a field or is no xz stream is named."""
    folder = record(tmp_path / arch.name, [made(arch)])
    (run,) = runs(tmp_path)
    (folder / "base" / "tiny.reloc.bin.xz").write_bytes(b"no xz")
    with pytest.raises(BadModule, match=r"tiny.reloc.bin.xz.*damaged"):
        run.recordings[0].raw()
    (folder / "base" / "tiny.reloc.bin.xz").write_bytes(lzma.compress(b"abc"))
    with pytest.raises(BadModule, match=r"tiny.reloc.bin.xz.*3 bytes instead of 4"):
        run.recordings[0].raw()
    for name in ("vuln.json", "modules"):
        (folder / "boot" / "base" / name).write_text("[", "ascii")
    with pytest.raises(BadModule, match=r"vuln.json.*not readable"):
        _ = run.boot
    with pytest.raises(BadModule, match=r"modules.*not readable"):
        _ = run.live
    path = folder / "base" / "tiny.json"
    facts = json.loads(path.read_text("ascii"))
    del facts["symbols"]
    path.write_text(json.dumps(facts), "ascii")
    with pytest.raises(BadModule, match=r"tiny.*symbols"):
        list(runs(tmp_path))
    path.write_text("{", "ascii")
    with pytest.raises(BadModule, match=r"tiny.json.*not readable"):
        list(runs(tmp_path))
    (folder / "runs" / "x.json.xz").write_bytes(lzma.compress(b"[]"))
    path.unlink()
    with pytest.raises(BadModule, match=r"x.json.xz"):
        list(runs(tmp_path))


def test_recordings_of_other_releases(
    arch: archs.Arch, other_recordings: dict[str, Path], kernels: dict[str, Path]
) -> None:
    """Each is of its own kernel, and whose image is at hand."""
    for release, folder in other_recordings.items():
        for run in runs(folder):
            assert run.arch_name == arch.name
            assert run.kernel.startswith(f"{release}.")
            assert run.boot.version == tuple(map(int, release.split(".")))
            assert run.boot.capabilities
            assert run.boot.config["CONFIG_MODULES"] == "y"
    missing = sorted(set(other_recordings) - set(kernels))
    assert not missing, f"{arch.name}: recorded, but without an image: {missing}"


def test_boots_that_kept_what_changed_in_an_archive(arch: archs.Arch, tmp_path: Path) -> None:
    """Bytes of all modules of a boot may stand in one archive each."""
    folder = record(tmp_path / arch.name, [made(arch)], run="other")
    (run,) = runs(tmp_path)
    kept = folder / "runs" / "other"
    for what in ("reloc.bin", "init.xor"):
        raw = lzma.decompress((kept / f"tiny.{what}.xz").read_bytes())
        (kept / f"tiny.{what}.xz").unlink()
        with tarfile.open(folder / "runs" / f"other.{what}.tar.xz", "w:xz") as archive:
            member = tarfile.TarInfo(f"tiny.{what}")
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    assert run.recordings[0].raw() == (b"\1\2\3\4", b"\5\1\1\5")
    (folder / "runs" / "other.init.xor.tar.xz").write_bytes(lzma.compress(b"no archive"))
    with pytest.raises(BadModule, match=r"other.init.xor.tar.xz.*damaged"):
        fresh(tmp_path).raw()


def fresh(folder: Path) -> Recording:
    """Return the first recording of a folder, read again."""
    recording_module._archived.cache_clear()
    return next(iter(runs(folder))).recordings[0]


def test_areas_of_core_and_init_are_parts(arch: archs.Arch, tmp_path: Path) -> None:
    """Before Linux 6.4 a module had two areas, and their parts are the regions."""
    folder = record(tmp_path / arch.name, [made(arch)])
    path = folder / "base" / "tiny.json"
    facts = json.loads(path.read_text("ascii"))
    core = {"text_size": 0x2000, "ro_size": 0x3000, "ro_after_init_size": 0x3000, "size": 0x5000}
    facts["layout"] = {"CORE": {"base": hex(TEXT), **core}}
    path.write_text(json.dumps(facts), "ascii")
    assert fresh(tmp_path).regions == {
        MemType.TEXT: (TEXT, 0x2000),
        MemType.RODATA: (TEXT + 0x2000, 0x1000),
        MemType.DATA: (TEXT + 0x3000, 0x2000),
    }
