# SPDX-License-Identifier: GPL-2.0-or-later
"""Module files: every compression a kernel installs, and every way they can be damaged."""

from __future__ import annotations

import gzip
import lzma
import random
from collections.abc import Callable
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


PACKERS = [lzma.compress, gzip.compress, zstd, zstd_streamed]
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
    for size in (len(packed) - 1, len(packed) // 2, 20):
        with pytest.raises(BadModule) as caught:
            files.decompress(packed[:size], "cut.ko.z")
        assert caught.value.module == "cut.ko.z"
        assert caught.value.where == "compressed data"


@pytest.mark.parametrize("pack", PACKERS[:3])
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
