# SPDX-License-Identifier: GPL-2.0-or-later
"""The pictures of the web page: there, small, and of pages that say the same today."""

from __future__ import annotations

import pytest

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from tests.support import booted
from tests.support.screens import FOLDER, LARGEST, PAGE, SHOTS, page, taken
from tests.support.served import Served

KERNEL = "6.12-amd64"  # of which a picture was made


@pytest.fixture(scope="module")
def said(browser):
    """Return what each page says; those of a kernel only where that is at hand."""
    kernels = {name: folder for name, folder, _ in booted.releases()}
    words = ("--kernel", str(kernels[KERNEL])) if KERNEL in kernels else ()
    if words:
        booted.machine(kernels[KERNEL])  # once for all tests; the server finds it booted
    server = Served(*words)
    try:
        shots = iter([shot for shot in SHOTS if words or not shot.boots])
        return {shot.name: text for shot, text in taken(browser, server.url, shots)}
    finally:
        server.close()


def test_what_pages_say_is_what_the_documentation_shows(said):
    """The page of pictures is as it would be made today; `python -m tests.support.screens` does."""
    shown = PAGE.read_text("utf-8")
    for shot in SHOTS:
        if shot.name not in said:
            pytest.skip(f"{KERNEL} is not among the kernels: {shot.name} was not looked at")
    assert page(said) == shown


@pytest.mark.parametrize("shot", SHOTS, ids=lambda shot: shot.name)
def test_pictures_are_small_and_of_their_size(shot):
    """A picture is a WebP of the window's size, and quickly fetched."""
    data = (FOLDER / f"{shot.name}.webp").read_bytes()
    assert data[:4] + data[8:12] == b"RIFFWEBP"
    assert len(data) <= LARGEST
    at = data.index(b"VP8 ") + 14  # behind frame tag and start code: width, height
    size = tuple(int.from_bytes(data[n : n + 2], "little") & 0x3FFF for n in (at, at + 2))
    assert size == shot.size


def test_there_are_no_others():
    """Each file of the folder is shown."""
    assert {path.stem for path in FOLDER.iterdir()} == {shot.name for shot in SHOTS}
    assert len(SHOTS) == 10
