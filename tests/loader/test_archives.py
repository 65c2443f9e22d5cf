# SPDX-License-Identifier: GPL-2.0-or-later
"""Archives: what is in them, in what order it is needed, and what damage does."""

from __future__ import annotations

import lzma
import shutil
import subprocess
import tarfile
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader.archives import MAX_HEADER, MAX_MEMBER, is_archive, modules_in, open_archive
from loader.errors import BadModule
from loader.files import module_name
from samples.modules import root
from tests.support import packages

pytest.importorskip("unix_ar", reason="unix-ar reads Debian packages")
pytest.importorskip("rpmfile", reason="rpmfile reads RPMs")

KINDS = [
    *((packages.tarball, ".tar" + packing, packing) for packing in packages.PACK),
    *((packages.deb, ".deb", packing) for packing in (".gz", ".xz", ".zst")),
    *((packages.rpm, ".rpm", packing) for packing in (".gz", ".xz", ".zst", ".bz2")),
]
NAMES = [f"{suffix}{packing}" for _, suffix, packing in KINDS]
TREE = "lib/modules/6.12.0-samples"


def samples(*more):
    """Return (path, bytes) pairs: the sample modules, and files that are none."""
    folder = root("arm64") / TREE
    found = [
        (f"{TREE}/kernel/{path.name}", path.read_bytes())
        for path in sorted(folder.glob("kernel/*.ko"))
    ]
    return [("boot/vmlinuz", b"MZ" * 5000), *found, (f"{TREE}/modules.order", b"x\n"), *more]


@pytest.mark.parametrize(("make", "suffix", "packing"), KINDS, ids=NAMES)
def test_modules_come_out_as_they_went_in(tmp_path, make, suffix, packing):
    """Names and bytes of modules, in order, and nothing else, whatever the packing."""
    path = tmp_path / f"a{suffix}"
    path.write_bytes(make(samples((f"{TREE}/odd.ko.xz", b"\1\2\3"), ("empty.ko", b"")), packing))
    expected = [
        (name, data)
        for name, data in samples((f"{TREE}/odd.ko.xz", b"\1\2\3"), ("empty.ko", b""))
        if ".ko" in name
    ]
    assert is_archive(path)
    found = list(modules_in(path))
    assert [(member.path, member.file.data) for member in found] == expected
    assert [member.size for member in found] == [len(data) for _, data in expected]


def test_a_package_of_dpkg_deb(tmp_path):
    """What dpkg-deb builds is read."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed")
    (tmp_path / "p/DEBIAN").mkdir(parents=True)
    (tmp_path / "p/DEBIAN/control").write_text(
        "Package: p\nVersion: 1\nArchitecture: all\nMaintainer: n <n@n>\nDescription: d\n"
    )
    for path, data in samples():
        (tmp_path / "p" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / path).write_bytes(data)
    command = ["dpkg-deb", "--root-owner-group", "-b", str(tmp_path / "p"), str(tmp_path / "p.deb")]
    subprocess.run(command, check=True, capture_output=True)
    found = {member.path: member.file.data for member in modules_in(tmp_path / "p.deb")}
    assert found == {path: data for path, data in samples() if path.endswith(".ko")}


def needing(*names):
    """Return a file with the `.modinfo` line that names what it needs."""
    return b"license=GPL\0depends=" + ",".join(names).encode() + b"\0name=x\0"


def test_dependencies_come_deepest_first(tmp_path):
    """`depends=` is followed, in one tree, through cycles, whatever the order of the archive."""
    files = [
        ("lib/modules/1/a.ko", needing("b-b", "c")),
        ("lib/modules/1/b_b.ko.xz", lzma.compress(needing("c", "absent"))),
        ("lib/modules/1/c.ko", needing("d")),
        ("lib/modules/1/d.ko", needing("c")),
        ("lib/modules/2/a.ko", needing("c")),
        ("lib/modules/2/c.ko", needing() + b"2"),
    ]
    path = tmp_path / "a.tar"
    path.write_bytes(packages.tarball(files))
    archive = open_archive(path)
    needed = {m.path: [n.name for n in archive.needed(m)] for m in modules_in(path)}
    assert needed == {
        "lib/modules/1/a.ko": ["d.ko", "c.ko", "b_b.ko.xz"],
        "lib/modules/1/b_b.ko.xz": ["d.ko", "c.ko"],
        "lib/modules/1/c.ko": ["d.ko"],
        "lib/modules/1/d.ko": ["c.ko"],
        "lib/modules/2/a.ko": ["c.ko"],
        "lib/modules/2/c.ko": [],
    }
    (second,) = archive.needed(next(m for m in modules_in(path) if m.path == files[4][0]))
    assert second.data == files[5][1]
    assert module_name(second.name) == "c"


@pytest.mark.parametrize(("make", "suffix", "packing"), KINDS, ids=NAMES)
@given(data=st.data())
@settings(max_examples=25)
def test_damage_is_refused(tmp_path_factory, make, suffix, packing, data):
    """A byte changed or a tail cut off: the modules before it, then BadModule or nothing."""
    raw = bytearray(make([("x.ko", b"ELF" * 30), ("y.ko", bytes(range(256)))], packing))
    at = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        del raw[at:]
    else:
        raw[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("damaged") / f"a{suffix}"
    path.write_bytes(raw)
    try:
        for member in modules_in(path):
            assert member.file is None or len(member.file.data) == member.size
    except BadModule as error:
        assert error.module == path.name  # noqa: PT017 -- damage need not be seen


def test_sizes_that_are_announced_take_no_memory(tmp_path):
    """Members and headers that are too large are not read, packed or not."""
    large = tarfile.TarInfo("huge.ko")
    large.size = MAX_MEMBER + 1
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, MAX_HEADER + 1
    for info, reason in ((large, "unexpected end of data"), (header, "a header of 0x100001")):
        path = tmp_path / "a.tar.xz"
        bomb = lzma.LZMACompressor(preset=0)
        path.write_bytes(bomb.compress(info.tobuf() + bytes(1 << 25)) + bomb.flush())
        tracemalloc.start()
        with pytest.raises(BadModule, match=reason):
            assert [member.file for member in modules_in(path)] == [None]
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
        tracemalloc.stop()


def test_a_stream_that_wants_much_memory_is_refused(tmp_path):
    """The decompressor's own memory is limited, too."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 29}]
    path = tmp_path / "a.tar.xz"
    with lzma.open(path, "wb", filters=filters) as out:
        out.write(packages.tarball(samples()))
    with pytest.raises(BadModule, match=r"[Mm]emory"):
        list(modules_in(path))
