# SPDX-License-Identifier: GPL-2.0-or-later
"""The pictures of the web page in the documentation, and the page that shows them.

    python -m tests.support.screens [--kernel FOLDER]

Each is what a browser shows at an address; beside it stands what the page says there, in words. The
words are what tests compare: pixels depend on fonts. FOLDER is a kernel of Debian's, which is booted.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import attrs

from tests.support.browsing import chromium, go, wait
from tests.support.served import Served

DOCS = Path(__file__).parents[2] / "docs"
FOLDER = DOCS / "screens"
PAGE = DOCS / "screens.md"
LARGEST = 120 << 10  # bytes of a picture
HEAD = """# The page in pictures

`execmem serve` opens the page, `execmem explain MODULE --html FILE` writes what of it needs nobody who
answers ([more](explain.md)). Each picture here is what a browser shows at the address below it; it is
made anew with `python -m tests.support.screens`.
"""


@attrs.frozen(kw_only=True)
class Shot:
    """A picture.

    Parameters
    ----------
    name
        Of its file.
    where
        The address behind `#`.
    title
        What it is about.
    says
        Where what the page says stands: a CSS selector.
    first
        What is brought to the top of the window: a CSS selector.
    run
        A script that is run before.
    size
        Width and height of the window, in pixels.
    dark
        Whether in the dark.
    """

    name: str
    where: str
    title: str
    says: str
    first: str = ""
    run: str = ""
    size: tuple[int, int] = (1100, 700)
    dark: bool = False

    @property
    def boots(self) -> bool:
        """Whether a kernel must have been given."""
        return self.where.startswith("kernel")


SHOTS = (
    Shot(
        name="where",
        where="where?module=mathuser&loads=arm64",
        title="Where a module lies, and what holds it there",
        says=".verdict",
        first="article section",
        size=(1100, 760),
    ),
    Shot(
        name="refused",
        where="where?module=mathuser&loads=x86_64&text.0=-0x80000000&data.0=-0x80000000",
        title="Too far away: the load is refused",
        says=".verdict",
        first="article section",
        size=(1100, 760),
        dark=True,
    ),
    Shot(
        name="what",
        where="what?module=mathuser&loads=riscv64&pick.0=3",
        title="What one relocation does to which bits",
        says=".detail dd",
    ),
    Shot(
        name="how",
        where="how?module=mathuser&loads=x86_64&step.0=4",
        title="A load in steps, as the page table sees it",
        says=".step p",
    ),
    Shot(
        name="beside",
        where="where?module=mathuser&loads=x86_64,arm64,riscv64",
        title="Architectures side by side",
        says=".verdict",
        size=(1440, 900),
    ),
    Shot(
        name="poke",
        where="poke?arch=x86_64&way=no-sync-2",
        title="Two CPUs, and a protocol with a mistake",
        says="#verdict",
        first="section[aria-label=Poke]",
        run="execmem.app.columns[0].poke.wrong()",
        size=(1100, 800),
    ),
    Shot(
        name="poke-phone",
        where="poke?arch=arm64",
        title="The same on a phone, as the kernel does it",
        says="#verdict",
        first="section[aria-label=Poke]",
        run="execmem.app.columns[0].poke.run(0)",
        size=(375, 760),
    ),
    Shot(
        name="designs",
        where="designs?arch=x86_64&at=60",
        title="One workload under two designs of executable memory",
        says="#moment",
        first="section[aria-label=Designs]",
        size=(1280, 760),
    ),
    Shot(
        name="designs-inside",
        where="designs?arch=arm64&left=strata&right=rox_cache&closely=21",
        title="Inside of one load: a leaf is split, and heals",
        says="#moment",
        first="section[aria-label=Designs]",
        run="const d = execmem.app.columns[0].designs; d.seek(d.at + 3)",
        size=(1280, 760),
        dark=True,
    ),
    Shot(
        name="kernel",
        where="kernel?line=0xffffffff81000000",
        title="The page tables of a booted kernel",
        says="#open",
        first="section[aria-label=Map]",
        size=(1100, 800),
    ),
)


def taken(browser: Any, url: str, shots: Iterator[Shot]) -> Iterator[tuple[Shot, str]]:
    """Yield each of some pictures as the browser shows it, and what the page says there."""
    go(browser, url)
    for shot in shots:
        size = {"deviceScaleFactor": 1, "mobile": shot.size[0] < 600}
        size |= {"width": shot.size[0], "height": shot.size[1]}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.execute_script(
            "document.body.dataset.ready = ''; location.hash = arguments[0]",
            f"{shot.where}&theme={'dark' if shot.dark else 'light'}",
        )
        wait(browser)
        theme = "document.documentElement.classList.toggle('dark', arguments[0])"
        browser.execute_script(theme, shot.dark)
        if shot.run:
            browser.execute_script(shot.run)
        top = f"document.querySelector('{shot.first or 'body'}').scrollIntoView()"
        browser.execute_script(top)
        told = f"return document.querySelector('{shot.says}').textContent"
        yield shot, wait(browser, told)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def page(said: dict[str, str]) -> str:
    """Return the documentation's page of pictures: name -> what the page says there."""
    parts = [HEAD]
    for shot in SHOTS:
        alt = (
            escape(f"{shot.title}: {said[shot.name]}", quote=False)
            .replace("[", "(")
            .replace("]", ")")
        )
        parts += [
            f"## {shot.title}\n",
            f"![{alt}](screens/{shot.name}.webp)\n",
            f"`#{shot.where}` says: {said[shot.name].strip()}\n",
        ]
    return "\n".join(parts)


def _made(url: str) -> dict[str, str]:
    """Make all pictures; return what pages say."""
    FOLDER.mkdir(exist_ok=True)
    said = {}
    drawn = "requestAnimationFrame(() => requestAnimationFrame(() => done(true)))"
    with chromium() as browser:
        for shot, text in taken(browser, url, iter(SHOTS)):
            wait(browser, f"return new Promise((done) => {drawn})")
            image = browser.execute_cdp_cmd(
                "Page.captureScreenshot", {"format": "webp", "quality": 82}
            )["data"]
            (FOLDER / f"{shot.name}.webp").write_bytes(base64.b64decode(image))
            said[shot.name] = text
    return said


def main(words: list[str]) -> None:
    """Make all pictures and their page."""
    server = Served(*words)
    try:
        said = _made(server.url)
    finally:
        server.close()
    sys.stderr.write("execmem: look at them before they are committed\n")
    PAGE.write_text(page(said), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
