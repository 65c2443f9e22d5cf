# SPDX-License-Identifier: GPL-2.0-or-later
"""radare2 as an oracle: the program, or its libraries as a Python package (r2libr), in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

# One answer a line, because commands may print several.
_SCRIPT = """
import ctypes, importlib.resources, json, sys, types
try:
    import pkg_resources
except ModuleNotFoundError:  # which setuptools has no more, and the package asks one thing
    stand_in = types.ModuleType("pkg_resources")
    stand_in.resource_filename = lambda name, file: str(importlib.resources.files(name) / file)
    sys.modules["pkg_resources"] = stand_in
from libr import r_core
core = r_core.r_core_new()
for command in json.load(sys.stdin):
    said = r_core.r_core_cmd_str(core, ctypes.create_string_buffer(command.encode()))
    text = said if isinstance(said, bytes) else ctypes.string_at(said)
    print(json.dumps(text.decode("utf-8", "replace")))
"""
QUIET = ("e scr.color=0", "e scr.interactive=false")


def asked(file: Path, commands: Sequence[str]) -> tuple[list[str], str]:
    """Return what radare2 answers to commands about a file, and what it complains of; or skip."""
    if importlib.util.find_spec("libr") is not None:
        words = [*QUIET, f"o {file}", *commands]
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT],
            input=json.dumps(words),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        return answers[len(QUIET) + 1 :], done.stderr
    program = shutil.which("r2")
    if program is None:
        pytest.skip("radare2 is not installed (r2, or pip install r2libr)")
    mark = "--next--"
    parts = [part for command in commands for part in ("-c", command, "-c", f"?e {mark}")]
    done = subprocess.run(
        [program, "-N", "-q", "-e", "scr.color=0", *parts, str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(f"{mark}\n")[: len(commands)], done.stderr


def documents(file: Path, commands: Sequence[str]) -> tuple[list[Any], str]:
    """Return JSON documents that radare2 answers with, and what it complains of; or skip."""
    answers, complaints = asked(file, commands)
    return [json.loads(answer) for answer in answers], complaints
