# SPDX-License-Identifier: GPL-2.0-or-later
"""What modules registered with the kernel: one record each, as long as it is registered.

A module's init is mostly registrations: here is a driver, an algorithm, a file system, and
these are its callbacks. The kernel keeps that for whoever uses it; the record keeps it for a
person who asks what the module offers, and for Python, which can call every callback. What
a record says of its structure was read when it was registered.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import attrs

Field: TypeAlias = "int | str | tuple[str, ...]"
RECORD = 1024  # bytes that a record costs the host beside its texts


@attrs.frozen(kw_only=True)
class Record:
    """One registration.

    Parameters
    ----------
    kind
        What it is: `shash`, `pci driver`, `filesystem`, `misc device` ...
    name
        What the module calls it.
    address
        Its structure; the handle that was returned, where there is none.
    owner
        The module that registered it; empty for nobody.
    fields
        What else is of interest; what has 64 bits is a `Hex`.
    callbacks
        Member name -> address of the function.
    """

    kind: str
    name: str
    address: int
    owner: str
    fields: Mapping[str, Field] = attrs.field(factory=dict)
    callbacks: Mapping[str, int] = attrs.field(factory=dict)

    @property
    def cost(self) -> int:
        """Bytes of the host's memory."""
        texts = [self.name]
        for value in self.fields.values():
            texts += (
                [value] if isinstance(value, str) else value if isinstance(value, tuple) else []
            )
        return RECORD + sum(map(sys.getsizeof, texts))


@attrs.define
class Registry:
    """What is registered now, in the order of registration."""

    _records: dict[tuple[str, int], list[Record]] = attrs.field(factory=dict, init=False)
    _count: int = attrs.field(default=0, init=False)
    cost: int = attrs.field(default=0, init=False)  # bytes of the host's memory

    def add(self, record: Record) -> None:
        """Enter a record; one structure may be registered several times."""
        self._records.setdefault((record.kind, record.address), []).append(record)
        self._count += 1
        self.cost += record.cost

    def remove(self, kind: str, address: int) -> Record | None:
        """Take the last record of a structure out and return it; None where there is none."""
        found = self._records.get((kind, address))
        if not found:
            return None
        record = found.pop()
        self._count -= 1
        self.cost -= record.cost
        if not found:
            del self._records[kind, address]
        return record

    def forget(self, owner: str) -> tuple[Record, ...]:
        """Take out, and return, what a module that goes has left registered."""
        left = tuple(self.find(owner=owner))
        kept = {
            key: [r for r in records if r.owner != owner] for key, records in self._records.items()
        }
        self._records = {key: records for key, records in kept.items() if records}
        self._count -= len(left)
        self.cost -= sum(record.cost for record in left)
        return left

    def find(
        self, kind: str | None = None, name: str | None = None, owner: str | None = None
    ) -> Iterator[Record]:
        """Yield the records that have the given kind, name and owner."""
        for record in self:
            if (
                kind in (None, record.kind)
                and name in (None, record.name)
                and owner in (None, record.owner)
            ):
                yield record

    def at(self, kind: str, address: int) -> Record | None:
        """Return the last record of a structure, or None."""
        found = self._records.get((kind, address))
        return found[-1] if found else None

    def mark(self) -> dict[tuple[str, int], list[Record]]:
        """Return what is registered now, for `roll_back`."""
        return {key: list(records) for key, records in self._records.items()}

    def roll_back(self, mark: Mapping[tuple[str, int], list[Record]]) -> None:
        """Return to what was registered at `mark`."""
        self._records = {key: list(records) for key, records in mark.items()}
        self._count = sum(map(len, mark.values()))
        self.cost = sum(record.cost for records in mark.values() for record in records)

    def __iter__(self) -> Iterator[Record]:
        for records in tuple(self._records.values()):
            yield from tuple(records)

    def __len__(self) -> int:
        return self._count
