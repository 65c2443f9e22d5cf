# SPDX-License-Identifier: GPL-2.0-or-later
"""One file per command; `execmem.cli` imports a command's file when it is asked for."""
