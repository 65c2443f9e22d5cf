# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel keeps between loads: its taints, what it says once, and what was noticed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs

from allocator.types import PAGE_SIZE
from archs import Arch
from archs.layouts import Layouts, Unknown
from loader.build import Build, build_of
from loader.checks import ERR, WARNING, Refused
from loader.elfview import ElfView
from loader.errors import LoadError, SymbolClash
from loader.kernel.image import KernelImage
from loader.versions import TreeFacts

TAINTS = "PFSRMBUDAWCIOELKXTN"  # by bit, as /proc/sys/kernel/tainted has them


@attrs.frozen
class Notice:
    """Something about a module that is assumed, or that is not done here: nothing is refused.

    Parameters
    ----------
    code
        The name of the check (`loader.checks`).
    text
        What a person reads.
    module
        The module's name.
    """

    code: str
    text: str
    module: str

    def __str__(self) -> str:
        return f"{self.module}: {self.text}"


def taints_of_bits(bits: int) -> str:
    """Return the letters of taints by their bits; `?N` for bit N where that has none here.

    >>> taints_of_bits(0x3000)
    'OE'
    """
    found = ""
    for bit in range(bits.bit_length()):
        if bits >> bit & 1:
            found += TAINTS[bit] if bit < len(TAINTS) else f"?{bit}"
    return found


def taints_text(letters: Iterable[str]) -> str:
    """Return taints in the kernel's order, as /proc/modules shows them."""
    return "".join(sorted(letters, key=TAINTS.index))


@attrs.define
class Gate:
    """What the kernel keeps between loads: its taints, what it says once, what it is compared with.

    Parameters
    ----------
    arch
        The architecture.
    facts
        Returns what is known of the kernel from its image or a tree of modules, or None.
    kernel
        The kernel that modules are for, where it is given.
    layouts
        Where members of its structures lie; None: there is none that is given.
    force
        Load as `modprobe --force` does: the module's vermagic and versions do not count.
    constructors
        Whether the kernel has CONFIG_CONSTRUCTORS.
    log
        Told of what the kernel logs: level and text.
    on_notice
        Told of each notice.
    taints
        Letters.
    notices
        Those of all modules, in order.
    """

    arch: Arch
    facts: Callable[[], TreeFacts | None] = lambda: None
    kernel: KernelImage | None = None
    layouts: Layouts | None = None
    force: bool = False
    constructors: bool = False
    log: Callable[[int, str], None] = lambda _level, _text: None
    on_notice: Callable[[Notice], None] = lambda _notice: None
    taints: set[str] = attrs.field(factory=set)
    notices: list[Notice] = attrs.field(factory=list)
    said: set[str] = attrs.field(factory=set)

    @property
    def page_size(self) -> int:
        """Bytes of a page of the kernel that is given; where none is, of the modelled one."""
        return PAGE_SIZE if self.kernel is None else self.kernel.page_size or PAGE_SIZE

    def build_of(self, view: ElfView) -> Build:
        """Return what a module was built for, as far as it and the kernel that is given tell."""
        return build_of(view, self.kernel)

    def layouts_of(self, build: Build) -> Layouts:
        """Return where members of the structures of a module's kernel lie.

        They are known of the kernel that is given, and else of the one that is modelled.
        """
        if self.layouts is not None:
            return self.layouts
        return self.arch.loads.layouts if build.tabled else Unknown(build.named)

    def taken(self, view: ElfView, build: Build) -> ElfView:
        """Return a module as one of the version that its kernel has, where that is known better."""
        if self.kernel is None and view.built_for is not None:
            return view
        version = build.version
        if version.assumed or version.value == view.built_for:
            return view
        return attrs.evolve(view, taken_for=version.value)

    def report(self, error: LoadError) -> None:
        """Log what the kernel logs where it refuses a module."""
        if isinstance(error, Refused):
            for one in error.violations:
                for line in one.line.splitlines():
                    self.log(one.level, line)
            return
        for line in error.line.splitlines():
            self.log(ERR if isinstance(error, SymbolClash) else WARNING, line)
