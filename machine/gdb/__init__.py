# SPDX-License-Identifier: GPL-2.0-or-later
"""A server of gdb's remote protocol for machines: `Machine.gdb`."""
