# SPDX-License-Identifier: GPL-2.0-or-later
"""What the web page costs a reader: how soon it shows something, and how fast a move is drawn.

A page of one module in one file (`execmem explain --html`) in a headless Chromium: time until the
first paint and until everything is there; then moves of text and data, each with the verdict, all
arcs of the map, and, in the view *what*, the list and the selected relocation. A move is what the page's
thread computes until it is drawn, in time of a processor, so whatever else the machine does is not in it;
that two frames without a move cost is taken off. The aims: first paint within a second, each move within
50 ms, for a module of 40,000 relocations (nouveau).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

READY = "return document.body.dataset.ready === 'yes'"
DRAWN = "requestAnimationFrame(() => requestAnimationFrame(() => done(true)));"
MOVE = "const move = BigInt(arguments[0]) * 0x800000n; execmem.place(move, move);"


def spent(browser: Any) -> float:
    """Return what the page's thread has computed, in milliseconds."""
    metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return 1000 * next(each["value"] for each in metrics if each["name"] == "TaskDuration")


def moves(browser: Any) -> list[float]:
    """Return what each of 100 moves costs, ascending."""

    def cost(script: str, *words: int) -> float:
        before = spent(browser)
        browser.execute_async_script(
            f"const done = arguments[arguments.length - 1]; {script}", *words
        )
        return spent(browser) - before

    browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    idle = sorted(cost(DRAWN) for _ in range(21))[10]
    return sorted(cost(MOVE + DRAWN, k * 37 % 100 - 50) - idle for k in range(100))


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
                costs = moves(browser)
                print(
                    f"{view}: {count} relocations; first paint {paint:.0f} ms, ready within"
                    f" {ready:.0f} ms; a move {costs[50]:.1f} ms, of 100 95 within {costs[95]:.1f} ms,"
                    f" all within {costs[99]:.1f} ms"
                )
        finally:
            browser.quit()


if __name__ == "__main__":
    main()
