# SPDX-License-Identifier: GPL-2.0-or-later
"""Tarballs, Debian packages and RPMs around given files, written from their formats' manuals.

deb(5), ar(5), cpio(5) "New ASCII Format", and the RPM file format (lead, two headers, payload).
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile

import zstandard

PACK = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.compress,
}


def tarball(files, packing=""):
    """Return a tarball of (path, bytes) pairs, packed as its suffix says."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for path, data in files:
            info = tarfile.TarInfo(path)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return PACK[packing](raw.getvalue())


def deb(files, packing=""):
    """Return a Debian package of (path, bytes) pairs."""
    members = (
        ("debian-binary", b"2.0\n"),
        ("control.tar" + packing, tarball([("control", b"Package: p\n")], packing)),
        ("data.tar" + packing, tarball([("./" + path, data) for path, data in files], packing)),
    )
    out = b"!<arch>\n"
    for name, data in members:
        out += f"{name:16}{0:<12}{0:<6}{0:<6}{'100644':8}{len(data):<10}`\n".encode()
        out += data + b"\n" * (len(data) % 2)
    return out


def cpio(files):
    """Return a cpio archive of (path, bytes) pairs in the new ASCII format."""
    out = b""
    for number, (path, data) in enumerate([*files, ("TRAILER!!!", b"")], 1):
        mode = 0o100644
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path) + 1, 0)
        out += b"070701" + b"".join(b"%08x" % field for field in fields)
        out += path.encode() + b"\0"
        out += b"\0" * (-len(out) % 4) + data
        out += b"\0" * (-len(out) % 4)
    return out


def rpm(files, packing=""):
    """Return an RPM package of (path, bytes) pairs."""
    lead = struct.pack("!4sBBhh66shh16s", b"\xed\xab\xee\xdb", 3, 0, 0, 1, b"p", 1, 5, b"")
    empty = b"\x8e\xad\xe8\x01" + bytes(4) + struct.pack("!ii", 0, 0)
    return lead + empty + empty + PACK[packing](cpio([("./" + p, data) for p, data in files]))
