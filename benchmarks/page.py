# SPDX-License-Identifier: GPL-2.0-or-later
"""What the web page costs a reader: how soon it shows something, and how fast a move is drawn.

A page of one module in one file (`execmem explain --html`) in a headless Chromium: time until the
first paint and until everything is there; then moves of text and data, each with the verdict, all
arcs of the map, and, in the view *what*, the list and the selected relocation. The aims: first paint
within a second, a move within 50 ms, for a module of 40,000 relocations (nouveau).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click

READY = "return document.body.dataset.ready === 'yes'"
MOVES = """
    const { load, map } = execmem.state, times = [];
    for (let k = 0; k < 100; k++) {
      const start = performance.now(), move = BigInt((k * 37) % 100 - 50) * 0x800000n;
      load.place(move, move);
      if (map) { map.pending = false; map.paint(); }
      times.push(performance.now() - start);
    }
    times.sort((a, b) => a - b);
    return [times[50], times[95], times[99]];
"""


@click.command()
@click.argument("module")
@click.option("--root", required=True, help="folder that holds lib/modules/VERSION")
@click.option("--arch", default="arm64", show_default=True)
def main(module: str, root: str, arch: str) -> None:
    """Measure the page of a module."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.support.ui import WebDriverWait

    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        options = ["--root", root, "--arch", arch, "--no-init", "--unknown", "zero"]
        words = ["explain", module, *options, "--html", str(page)]
        subprocess.run([sys.executable, "-m", "execmem", *words], check=True)
        chosen = webdriver.ChromeOptions()
        chosen.binary_location = shutil.which("chromium") or ""
        for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1440,1000"):
            chosen.add_argument(word)
        browser = webdriver.Chrome(
            options=chosen, service=Service(shutil.which("chromedriver") or "")
        )
        try:
            for view in ("where", "what"):
                browser.get("about:blank")
                browser.get(f"{page.as_uri()}#{view}")
                WebDriverWait(browser, 120, 0.01).until(lambda b: b.execute_script(READY))
                paint, ready = browser.execute_script(
                    "return [performance.getEntriesByType('paint')[0].startTime, performance.now()]"
                )
                count = browser.execute_script("return execmem.state.motion.count")
                median, most, worst = browser.execute_script(MOVES)
                print(
                    f"{view}: {count} relocations; first paint {paint:.0f} ms, ready within"
                    f" {ready:.0f} ms; a move {median:.1f} ms, of 100 95 within {most:.1f} ms,"
                    f" all within {worst:.1f} ms"
                )
        finally:
            browser.quit()


if __name__ == "__main__":
    main()
