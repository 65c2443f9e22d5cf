# SPDX-License-Identifier: GPL-2.0-or-later
"""A page in a real browser: opened, waited for, looked at."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

PROGRAMS = ("chromium", "chromedriver")

READY = "return document.body.dataset.ready === 'yes' || document.querySelector('#said.refused')"


@contextmanager
def chromium():
    """Start a headless Chromium."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    binary, driver = map(shutil.which, PROGRAMS)
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.add_argument("--window-size=1400,1500")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield found
    finally:
        found.quit()


def wait(browser, script=READY, seconds=60):
    """Wait until a script says yes; return what it says."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds, 0.02).until(lambda b: b.execute_script(script))


def go(browser, url):
    """Open an address and wait until the page shows it; one that differs in its fragment, too."""
    browser.get("about:blank")
    browser.get(url)
    wait(browser)


def follow(browser, link):
    """Click what leads to another view, and wait for it; a link to this one does nothing."""
    if link.get_attribute("aria-current"):
        return
    browser.execute_script("document.body.dataset.ready = ''")
    link.click()
    wait(browser)


def complaints(browser):
    """Return what the browser's console says."""
    return [entry["message"] for entry in browser.get_log("browser")]
