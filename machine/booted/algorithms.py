# SPDX-License-Identifier: GPL-2.0-or-later
"""Which algorithm of a booted kernel is meant by a name, and what computes with it."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable

from allocator.errors import did_you_mean
from kernels.algorithms import CryptoError
from kernels.registry import Record
from machine.booted.crypto import (
    Aead,
    Algorithm,
    AsyncHash,
    Cipher,
    Compressor,
    Hash,
    OlderCompressor,
    Owner,
    Rng,
    Skcipher,
)

_WORD = re.compile(r"[^(),]+")  # of `gcm_base(ctr(aes),ghash)`
CLASSES: dict[str, type[Algorithm]] = {
    "shash": Hash,
    "skcipher": Skcipher,
    "aead": Aead,
    "rng": Rng,
    "scomp": Compressor,
    "compress": OlderCompressor,
    "cipher": Cipher,
    "acomp": Compressor,
    "ahash": AsyncHash,
    "lskcipher": Skcipher,
}
# In this order a name is tried that is not registered, a template's.
_TRIED = ("shash", "skcipher", "aead", "rng", "scomp", "ahash")


def open_algorithm(
    machine: Owner, name: str, kind: str | None, request: Callable[[str], bool]
) -> Algorithm:
    """Return what computes with an algorithm; see `BootedMachine.crypto`."""
    if kind is not None and kind not in CLASSES:
        raise CryptoError(name, "look up", 0, f"no kind {kind!r}: {', '.join(CLASSES)}")
    known = machine.algorithms()
    found = _named(known, name, kind)
    if not found:
        # The kernel asks for a template's module in a thread, where none can be brought.
        there = {record.name for record in known}
        words = [word for word in _WORD.findall(name) if word not in there]
        if [word for word in dict.fromkeys([name, *words]) if request(f"crypto-{word}")]:
            known = machine.algorithms()
            found = _named(known, name, kind)
    if found:
        best = max(found, key=_rank)
        made = CLASSES.get(best.kind)
        if made is None:
            reason = f"a {best.kind} is computed with by calling its functions"
            raise CryptoError(name, "look up", 0, reason)
        # By its driver's name, or what it is found by may be another kind's.
        return made(machine, name if kind is None else _driver(best, name), best.kind, known)
    refused: CryptoError | None = None
    for each in _TRIED if kind is None else (kind,):
        try:
            return CLASSES[each](machine, name, each, known)
        except CryptoError as error:
            if error.error not in (errno.ENOENT, errno.EINVAL):
                refused = refused or error
    if refused is not None:
        raise refused
    names = sorted({record.name for record in known})
    reason = f"no such {kind or 'algorithm'}{did_you_mean(name, names)}"
    hint = "give the folder that holds lib/modules (--root), or another name"
    raise CryptoError(name, "look up", errno.ENOENT, f"{reason}: {hint}")


def _named(known: list[Record], name: str, kind: str | None) -> list[Record]:
    return [
        record
        for record in known
        if name in (record.name, record.fields.get("cra_driver_name"))
        and kind in (None, record.kind)
    ]


def _driver(record: Record, name: str) -> str:
    value = record.fields.get("cra_driver_name")
    return value if isinstance(value, str) and value else name


def _rank(record: Record) -> tuple[int, int]:
    """Order algorithms of one name: by priority; of equals, the newer form of a compressor first."""
    priority = record.fields.get("cra_priority", 0)
    order = list(CLASSES)
    place = order.index(record.kind) if record.kind in order else len(order)
    return (priority if isinstance(priority, int) else 0, -place)
