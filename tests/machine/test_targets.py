# SPDX-License-Identifier: GPL-2.0-or-later
"""What the page about targets shows runs, in every kernel at hand that has the modules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lz4.block
import pytest

from loader.errors import NoModule
from tests.support import booted

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "targets.md"
SCRIPTS = dict(
    re.findall(
        r"^## (.*?)\n.*?```text\n(.*?)```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
)


@pytest.fixture(params=booted.some(), ids=lambda each: each[0])
def machine(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Return a machine that has booted a kernel, of each architecture."""
    _, folder, _ = request.param
    with booted.fresh(folder, folder if list(folder.rglob("*.ko*")) else None) as machine:
        yield machine


@pytest.mark.parametrize("title", SCRIPTS)
def test_scripts_of_the_page(machine: Any, title: str) -> None:
    """Each runs by itself, and finds nothing where nothing is wrong."""
    if title == "LZ4" and "LZ4_decompress_safe" not in machine.kernel.symbols:
        pytest.skip(f"Linux {machine.kernel.release} has no LZ4 of its own")
    known: dict[str, Any] = {"machine": machine, "checks": machine.sanitize("guard,locks")}
    try:
        exec(SCRIPTS[title], known)
    except NoModule as error:
        pytest.skip(str(error))
    if title == "LZ4":
        assert known["text"] == lz4.block.decompress(known["packed"], uncompressed_size=512)
