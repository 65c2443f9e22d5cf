# SPDX-License-Identifier: GPL-2.0-or-later
"""The explorable page.

What it shows of a module is `explain`'s, in a booted kernel `explain_booted`'s, of a relocation case
`explain_case`'s. `baked` answers ahead what a page that stands alone will ask. `execmem.pages` puts it together.
"""
