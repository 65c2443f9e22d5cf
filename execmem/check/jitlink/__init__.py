# SPDX-License-Identifier: GPL-2.0-or-later
"""LLVM's own JITLink tests, unmodified: which files are some, and what becomes of them."""

from execmem.check.jitlink.running import SUFFIXES, is_jitlink, run_jitlink

__all__ = ("SUFFIXES", "is_jitlink", "run_jitlink")
