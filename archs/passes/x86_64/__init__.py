# SPDX-License-Identifier: GPL-2.0-or-later
"""Passes that only x86-64's kernel makes (arch/x86/kernel/module.c: module_finalize)."""
