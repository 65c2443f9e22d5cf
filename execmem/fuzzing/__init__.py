# SPDX-License-Identifier: GPL-2.0-or-later
"""Fuzzing of modules and of kernels: inputs that reach code that none before has, and what goes wrong.

A target is set up once; then each input runs on the machine as it was (`machine.rounds`). Inputs are
made in epochs of a fixed length (`mutate`), out of the corpus as it was when the epoch began: so what is
found, and in which order, follows from the seed alone, however many processes work at it.
"""

from __future__ import annotations
