# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes the page that the home page of the site shows in a frame: a sample module, to be moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from archs import archs
from execmem.explaining import baked, explain
from machine.face import Machine
from samples.modules import root

MODULE = "mathuser"


def on_post_build(config: Any, **_more: Any) -> None:
    """Write the page into the site that was built."""
    views, names = [], []
    for arch in archs():
        if arch.run is not None:
            machine = Machine(arch, root=root(arch.name))
            views.append(explain.load(machine, lambda machine=machine: machine.load(MODULE)))
            names.append(arch.name)
    document = explain.document(views) | baked.answers(["poke"], names)
    Path(config["site_dir"], "explore.html").write_text(explain.html(document), "utf-8")
