# SPDX-License-Identifier: GPL-2.0-or-later
"""Interleavings: every order in which CPUs can do their steps while text is patched."""
