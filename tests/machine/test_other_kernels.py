# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules of other kernel releases: they load, and nothing of them is taken for something else."""

from __future__ import annotations

from machine.machine import Machine


def test_modules_of_other_releases_load(arch, kernels):
    """Modules of every release load, and every site of the tracer has a form that is known."""
    for release, folder in kernels.items():
        files = sorted(folder.glob("lib/modules/*/kernel/**/*.ko*"))
        for file in files[::6]:
            machine = Machine(arch, unknown="zero")
            loaded = machine.load(file, init=False).loaded
            assert not loaded.notes, (release, file.name)
            assert loaded.this is not None
            for entry, name in (("init", "init_module"), ("exit", "cleanup_module")):
                assert machine.kernel.modules.entry(loaded, entry) == loaded.symbols.get(name, 0)
