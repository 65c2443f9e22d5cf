# SPDX-License-Identifier: GPL-2.0-or-later
"""The levels of an architecture, each a record in a file of its own."""
