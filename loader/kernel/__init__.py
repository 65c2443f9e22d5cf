# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel images: what a file says of the kernel in it, without running anything."""
