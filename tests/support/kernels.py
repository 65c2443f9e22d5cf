# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel for tests: an image that says what it exports, and what it was built with."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence

import archs
from loader.kernel.image import KernelImage
from tests.archs.facts import facts
from tests.support.checked import Offer
from tests.support.imagewriter import Symbol, bzimage, elf, flat, kallsyms, symbols

ROOM = 1 << 16  # bytes of an image before its export tables
STRINGS = ROOM + 0x8000
SIZE = 8 << 20


def kernel_file(
    arch: archs.Arch,
    magic: str,
    offers: Sequence[Offer] = (),
    *,
    config: str = "",
    page: int = 4096,
    banner: str = "",
) -> bytes:
    """Return an image in the architecture's own format.

    Parameters
    ----------
    magic
        Its version magic, which begins with its release.
    config
        What it carries as IKCONFIG; empty for none.
    page
        What its header says, where it does.
    """
    base, machine = facts(arch).load.image_base, arch.machine
    wrapped = facts(arch).load.image_marks is None
    head = 0 if wrapped else 64
    release = magic.partition(" ")[0]
    text = f"Linux version {release} ({banner or 'me@here'}) #1 SMP now\n".encode() + b"\0"
    text += bytes(8) + magic.encode() + b"\0"
    text += bytes(-len(text) % 8)
    if config:
        text += b"IKCFG_ST" + gzip.compress(config.encode()) + b"IKCFG_ED"
    text += bytes(-len(text) % 8) + b"\x13\0\0\0" * 400
    strings, data, marks = bytearray(b"\0"), bytearray(), []
    for suffix, gpl in (("", False), ("_gpl", True)):
        chosen = [offer for offer in offers if offer.gpl is gpl]
        table = bytearray()
        for number, offer in enumerate(chosen):
            targets = [base + 64 * (2 + number)]
            for word in (offer.name, offer.space):
                targets.append(base + STRINGS + len(strings) if word else 0)
                strings += word.encode() + b"\0" if word else b""
            for target in targets:
                here = base + ROOM + len(data) + len(table)
                table += _field(arch, here, target)
        crcs = b"".join(struct.pack("<I", o.crc) for o in chosen if o.crc is not None)
        for name, contents in ((f"__ksymtab{suffix}", table), (f"__kcrctab{suffix}", crcs)):
            start = base + ROOM + len(data)
            data += contents
            marks.append(Symbol(start, "D", f"__start_{name}"))
            marks.append(Symbol(start + len(contents), "D", f"__stop_{name}"))
        data += bytes(-len(data) % 8)
    listed = sorted([*symbols(base, 600), *marks], key=lambda symbol: symbol.address)
    listed.append(Symbol(base + SIZE, "B", "_end"))
    body = text + kallsyms(listed, head + len(text), base, "6.12")
    assert head + len(body) < ROOM
    assert len(data) <= STRINGS - ROOM
    body = (body.ljust(ROOM - head, b"\0") + data).ljust(STRINGS - head, b"\0") + strings
    if wrapped:
        return bzimage(gzip.compress(elf(machine, body, base, SIZE)))
    image = bytearray(flat(machine, body, SIZE))
    image[24] |= {4096: 1, 16384: 2, 65536: 3}[page] << 1
    return bytes(image)


def _field(arch: archs.Arch, here: int, target: int) -> bytes:
    """Return a word that points at something, or at nothing: a distance where those are usual."""
    if not arch.loads.prel32:
        return struct.pack("<Q", target)
    return struct.pack("<i", target - here if target else 0)


def kernel_image(arch: archs.Arch, magic: str, offers: Sequence[Offer] = (), **more) -> KernelImage:
    """Return such an image, read."""
    return KernelImage.parse(kernel_file(arch, magic, offers, **more), "vmlinuz-test")
