# SPDX-License-Identifier: GPL-2.0-or-later
"""Assembly for each architecture that uses every relocation a linker can check.

What a compiler would not write stands behind `.reloc`. `far` is a kernel symbol within
reach of calls, `near` within reach of the shortest branch, `small` and `tiny` are numbers.
`SOURCES` gives the same bytes in every linker; `GOT_SOURCES` needs a global offset table,
whose place and order is each linker's own; `BEYOND_GAS` are records that the assembler of
binutils 2.40 has no way to write: the type, the bytes that it relocates, and the symbol.
"""

from __future__ import annotations
