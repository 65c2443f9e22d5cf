# SPDX-License-Identifier: GPL-2.0-or-later
"""What a link gives: bytes by section, and everything that was decided about them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import attrs
import numpy as np
from numpy.typing import NDArray

from archs import Arch
from archs.engine import Records
from loader.stubs import PltUse, Stubs
from loader.work import SymbolValues, Work


@attrs.frozen(eq=False)
class Linked:
    """The result of a link.

    Parameters
    ----------
    arch
        The module's architecture.
    sections
        Final bytes by section index, as views of one buffer.
    values
        What the symbols were resolved to.
    work
        The relocations.
    stubs
        PLT entries, GOT slots and veneers that were needed.
    image, offsets
        The buffer, and where each section starts in it.
    """

    arch: Arch
    sections: Mapping[int, memoryview]
    values: SymbolValues
    work: Work
    stubs: Stubs
    image: NDArray[np.uint8]
    offsets: Mapping[int, int]

    @property
    def records(self) -> Records:
        """The relocations as they were applied, for whoever asks how far they reach."""
        return self.work.records

    @property
    def plt(self) -> Mapping[bool, PltUse]:
        """Use of the PLT of core (False) and init (True) text."""
        return self.stubs.plt

    @property
    def symbols(self) -> NDArray[np.uint64]:
        """Value of every symbol, by symbol index."""
        return self.values.all[0]

    def copy(self) -> Linked:
        """Return the same result with bytes of its own: finalisation edits in place."""
        image = self.image.copy()
        memory = image.data
        sections = {
            index: memory[self.offsets[index] : self.offsets[index] + len(contents)]
            for index, contents in self.sections.items()
        }
        return attrs.evolve(self, image=image, sections=sections)

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """Relocations applied, by type name, most frequent first."""
        tables = [self.work.view.tables[number].records["type"] for number in self.work.tables]
        types = np.concatenate(tables) if tables else np.empty(0, np.uint32)
        numbers, counts = np.unique(types, return_counts=True)
        names = [self.arch.link.relocations[number].name for number in numbers.tolist()]
        by_name = zip(names, counts.tolist(), strict=True)
        return dict(sorted(by_name, key=lambda item: (-item[1], item[0])))
