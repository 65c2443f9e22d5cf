# SPDX-License-Identifier: GPL-2.0-or-later
"""Passes: what a kernel edits in a module between relocation and init, one file for each.

A module is compiled for every CPU and relocated for one kernel; only then the kernel
knows which instructions this boot wants, and rewrites them in place. A pass is a function
that edits a `Subject` and claims the bytes that it decides. An architecture lists its
passes in its kernel's order (`Arch.finalise`), because the order is part of the meaning:
calls are counted only after alternatives have brought theirs.

Sources: arch/*/kernel/module.c (module_finalize), kernel/module/main.c (load_module,
prepare_coming_module).
"""
