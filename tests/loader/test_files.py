# SPDX-License-Identifier: GPL-2.0-or-later
"""Module files: every compression a kernel installs, and every way they can be damaged."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import shutil
import subprocess
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from loader import files
from loader.errors import BadModule

IMAGE = b"\x7fELF" + random.Random(6).randbytes(5000) + bytes(20000)


def zstd(image: bytes) -> bytes:
    """Return a zstd frame that says how large its contents are."""
    zstandard = pytest.importorskip("zstandard")
    return zstandard.ZstdCompressor().compress(image)


def zstd_streamed(image: bytes) -> bytes:
    """Return a zstd frame that does not say how large its contents are."""
    stream = pytest.importorskip("zstandard").ZstdCompressor().compressobj()
    return stream.compress(image) + stream.flush()


def zstd_skipped(image: bytes) -> bytes:
    """Return zstd frames of which the first is to be skipped, and the last is empty."""
    skipped = bytes.fromhex("5a2a4d18") + (300).to_bytes(4, "little") + bytes(300)
    return skipped + zstd(image) + zstd(b"")


lzma_alone = partial(lzma.compress, format=lzma.FORMAT_ALONE)
PACKERS = [
    lzma.compress,
    gzip.compress,
    zstd,
    zstd_streamed,
    zstd_skipped,
    bz2.compress,
    lzma_alone,
]
Packer = Callable[[bytes], bytes]


@pytest.mark.parametrize("pack", [bytes, *PACKERS])
def test_every_compression_gives_back_the_image(pack: Packer, tmp_path: Path) -> None:
    """The contents decide how a file is read, not its name."""
    path = tmp_path / "any-name.ko"
    path.write_bytes(pack(IMAGE))
    assert files.read_module(path) == IMAGE


@pytest.mark.parametrize("pack", PACKERS)
def test_a_truncated_file_is_refused(pack: Packer) -> None:
    """A stream that ends early is refused at any length, and the message names the file."""
    packed = pack(IMAGE)
    if pack is zstd_skipped:  # without its last frame it is whole
        packed = packed[: -len(zstd(b""))]
    for size in (len(packed) - 1, len(packed) // 2, 20):
        with pytest.raises(BadModule) as caught:
            files.decompress(packed[:size], "cut.ko.z")
        assert caught.value.module == "cut.ko.z"
        assert caught.value.where == "compressed data"


@pytest.mark.parametrize("pack", [*PACKERS[:3], bz2.compress])
def test_a_damaged_stream_is_refused(pack: Packer) -> None:
    """A flipped byte in the middle is found by the format's own checks."""
    packed = bytearray(pack(IMAGE))
    packed[len(packed) // 2] ^= 0xFF
    if pack is zstd:  # no checksum by default: damage the block header instead
        packed[8:12] = b"\xff\xff\xff\xff"
    with pytest.raises(BadModule, match="compressed data: "):
        files.decompress(bytes(packed), "bad.ko")


@pytest.mark.parametrize("pack", PACKERS)
def test_a_bomb_is_stopped(pack: Packer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decompression never gives more than the limit, whatever the file says of itself."""
    packed = pack(bytes(100_000))
    monkeypatch.setattr(files, "MAX_SIZE", 4096)
    with pytest.raises(BadModule, match="larger than 0x1000 bytes"):
        files.decompress(packed, "bomb.ko")


@pytest.mark.parametrize("pack", PACKERS)
def test_a_bomb_takes_no_memory(pack: Packer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a small file may give depends on its size, and no more than that is ever held."""
    monkeypatch.setattr(files, "SMALL", 1 << 20)
    packed = pack(bytes(1 << 26))
    limit = max(1 << 20, 256 * len(packed))
    assert limit < 1 << 25
    tracemalloc.start()
    try:
        with pytest.raises(BadModule, match=f"larger than {limit:#x} bytes, the most that"):
            files.decompress(packed, "bomb.ko")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A growing buffer is an eighth larger; zstd gives up to 16 MiB at once, twice while it joins.
    assert peak < limit + limit // 4 + (1 << 25)


def test_streams_that_only_zstd_runs_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that repeats one byte 128 KiB at a time is stopped like any other bomb."""
    pytest.importorskip("zstandard")
    monkeypatch.setattr(files, "SMALL", 1 << 20)
    frame = bytes.fromhex("28b52ffd0058") + (bytes.fromhex("020010") + b"x") * 8000
    tracemalloc.start()
    try:
        with pytest.raises(BadModule, match="larger than"):
            files.decompress(frame, "bomb.ko")
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
    finally:
        tracemalloc.stop()


# Program, its options, what packs one stream, and the bytes that may stand between and behind.
PROGRAMS = {
    "xz": (["xz", "-dc"], partial(lzma.compress, check=lzma.CHECK_CRC32)),
    "lzma": (["xz", "-dc"], lzma_alone),
    "gzip": (["gzip", "-dc"], gzip.compress),
    "zstd": (["zstd", "-dc"], zstd),
    "bzip2": (["bzip2", "-dc"], bz2.compress),
}
FILLERS = [b"", b"", bytes(4), bytes(8), bytes(3), bytes(512), b"garbage", b"\x1f\x8b", b"\xfd7zXZ"]


def verdict(command: list[str], packed: bytes) -> bytes | None:
    """Return what a program makes of a file; None where it is an error."""
    done = subprocess.run(command, input=packed, capture_output=True, check=False)
    warned = done.returncode == 2 and command[0] == "gzip"
    return done.stdout if warned or not done.returncode else None


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("title", PROGRAMS)
def test_every_file_is_what_its_program_says(title: str, seed: int) -> None:
    """Streams in a row, padding and what else stands between and behind: as the program has it."""
    command, pack = PROGRAMS[title]
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]}")
    chance = random.Random(seed)
    packed = io.BytesIO()
    cuts = sorted(chance.choices(range(len(IMAGE)), k=chance.randrange(4)))
    for start, end in zip([0, *cuts], [*cuts, len(IMAGE)], strict=True):
        packed.write(pack(IMAGE[start:end]))
        packed.write(chance.choice(FILLERS) if chance.random() < 0.4 else b"")
    whole = packed.getvalue()
    if chance.random() < 0.2:
        whole = whole[: chance.randrange(20, len(whole))]
    said = verdict(command, whole)
    if said is None:
        with pytest.raises(BadModule, match="compressed data: "):
            files.decompress(whole, "a.ko")
    else:
        assert files.decompress(whole, "a.ko") == said


@pytest.mark.parametrize(
    ("head", "what"),
    [
        ("04224d186040", "lz4"),
        ("02214c18", "lz4"),
        ("1f9d90", "compress"),
        ("504b0304", "zip"),
        ("213c617263683e0a", "ar archive"),
        ("edabeedb0300", "RPM"),
    ],
)
def test_what_is_not_decompressed_is_named(head: str, what: str) -> None:
    """A file in a format that no kernel installs is refused as that, not as a damaged ELF file."""
    with pytest.raises(BadModule, match=f"a.ko: file: .*{what}"):
        files.decompress(bytes.fromhex(head) + bytes(100), "a.ko")


def test_a_missing_zstd_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the optional library the message says what to install."""
    packed = zstd(IMAGE)
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(BadModule, match=r"pip install 'execmem\[zstd\]'"):
        files.decompress(packed, "a.ko.zst")


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    """A path that cannot be read gives the family's error with the system's reason."""
    with pytest.raises(BadModule, match=r"no\.ko: file: No such file"):
        files.read_module(tmp_path / "no.ko")
    with pytest.raises(BadModule, match="file: "):
        files.read_module(tmp_path)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("crc16.ko", "crc16"),
        ("kernel/lib/crc-itu-t.ko.xz", "crc_itu_t"),
        ("/a/snd-hda-intel.ko.zst", "snd_hda_intel"),
        ("snd_hda-codec.ko.gz", "snd_hda_codec"),
        ("plain", "plain"),
        (Path("x/y-z.ko"), "y_z"),
    ],
)
def test_names_are_spelt_as_the_kernel_spells_them(path: str | Path, name: str) -> None:
    """Folders and suffixes go, dashes become underscores."""
    assert files.module_name(path) == name
