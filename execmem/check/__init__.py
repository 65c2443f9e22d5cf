# SPDX-License-Identifier: GPL-2.0-or-later
"""Relocation cases as files: read, placed, linked, asked, executed, held against linkers."""
