# SPDX-License-Identifier: GPL-2.0-or-later
"""A page in a real browser: opened, waited for, looked at."""

from __future__ import annotations

READY = "return document.body.dataset.ready === 'yes' || document.querySelector('#said.refused')"


def wait(browser, script=READY, seconds=20):
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
