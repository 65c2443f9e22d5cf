# SPDX-License-Identifier: GPL-2.0-or-later
"""The view course in a browser: lessons tell what `demo` tells, tasks what `course check` says."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from archs import arch as arch_by_name
from execmem.coursework import graded
from execmem.teaching import story_document
from samples.course import LESSONS
from samples.course.tasks import TASKS
from tests.samples.test_course import PAIRS, solution
from tests.support.browsing import complaints, go, wait
from tests.support.lessons import told
from tests.support.served import Served

LONG = "EXECMEM_LONG" in os.environ
SHORT = [("by-hand", "mips64el"), ("missing-sync", "riscv64"), ("churn", "arm64")]
VERDICT = "return document.querySelector('[aria-label=Verdict]')"
CHECKED = f"{VERDICT}.querySelector('.verdict')"


@pytest.fixture(scope="module")
def server():
    """Start a server."""
    found = Served()
    yield found
    found.close()


@pytest.fixture
def tab(server, browser):
    """Return a browser whose console has nothing to say in the end."""
    complaints(browser)
    yield browser
    assert complaints(browser) == []


def press(tab, text):
    """Press the button of these words."""
    script = "[...document.querySelectorAll('button')].find((b) => b.textContent === arguments[0]).click()"
    tab.execute_script(script, text)


def answer(tab, text):
    """Write an answer, have it checked, and return what is said of it: a head, and lines of cells."""
    tab.execute_script(f"{VERDICT}.replaceChildren()".removeprefix("return "))
    tab.execute_script("document.querySelector('textarea').value = arguments[0]", text)
    press(tab, "Check")
    wait(tab, CHECKED, 60)
    lines = tab.execute_script(
        f"{VERDICT.removeprefix('return ')}".join(("return [...", ".querySelectorAll('tbody tr')]"))
        + ".map((line) => [...line.children].map((cell) => cell.textContent))"
    )
    return tab.execute_script(f"{CHECKED}.textContent"), lines


def test_lessons_are_those_of_the_course(server, tab):
    """All of them, by chapter; a picture, tables and texts are those that `demo` tells."""
    go(tab, f"{server.url}#course?lesson=veneer")
    shown = [each.text for each in tab.find_elements("css selector", ".lessons button")]
    assert [each.split()[:2] for each in shown] == [
        [placed.number, name] for name, placed in LESSONS.items()
    ]
    assert tab.find_element("css selector", ".ask").text == LESSONS["veneer"].lesson.question
    press(tab, "Compute the answer")
    wait(tab, "return document.querySelector('img.slide')?.naturalWidth")
    document = story_document(told("veneer"))
    grids = [part for part in document["parts"] if part["kind"] == "grid"]
    cells = tab.execute_script(
        "return [...document.querySelectorAll('.lesson .output tbody tr')]"
        ".map((line) => [...line.children].map((cell) => cell.textContent))"
    )
    assert cells == [row for grid in grids for row in grid["rows"]]
    text = tab.find_element("css selector", ".lesson .output").text
    for part in document["parts"][1:]:
        if part["kind"] in ("text", "heading"):
            assert part["lines"][0] in text
    press(tab, "1.4 adrp ○")
    wait(tab, "return document.querySelector('.ask').textContent.startsWith('May finished')")
    wait(tab, "return location.hash.includes('lesson=adrp')")


@pytest.mark.parametrize(("task", "arch"), PAIRS if LONG else SHORT)
def test_tasks_are_checked_as_in_a_terminal(server, tab, tmp_path, task, arch):
    """The template does not pass, the solution does; each check says what the command says."""
    (lesson,) = [name for name, placed in LESSONS.items() if task in placed.lesson.tasks]
    go(tab, f"{server.url}#course?lesson={lesson}&arch={arch}")
    template = tab.find_element("css selector", "textarea").get_attribute("value")
    assert template == TASKS[task].file(arch_by_name(arch))
    for text, passes in ((template, False), (solution(task, arch), True)):
        head, lines = answer(tab, text)
        assert head == f"{task} on {arch}: {'passed' if passes else 'not yet'}"
        file = tmp_path / f"{task}{TASKS[task].suffix}"
        file.write_text(text)
        assert lines == [
            ["✓" if check["passed"] else "✗", check["what"], check["found"], check["wanted"]]
            for check in graded(str(file))["checks"]
        ]
    done = tab.find_element("css selector", ".lessons button[aria-current]").text
    assert done.endswith("✓")
    press(tab, "A hint")
    assert TASKS[task].hints[0] in tab.find_element("css selector", ".lesson").text


def test_every_task_is_passed_in_the_page(server, tab):
    """One reader does all of them, each for another architecture; the list says so in the end."""
    done = []
    go(tab, f"{server.url}#course?lesson=tour")
    for number, (name, task) in enumerate(TASKS.items()):
        if (name, "arm64") in SHORT:
            continue  # done above, and takes long
        arch = task.archs[number % len(task.archs)].name
        (lesson,) = [each for each, placed in LESSONS.items() if name in placed.lesson.tasks]
        label = f"{LESSONS[lesson].number} {lesson}, "  # has a task, or passed in a test before
        tab.find_element("css selector", f"[aria-label^='{label}']").click()
        wait(tab, f"return document.getElementById('answer-{name}')")
        head, _ = answer(tab, solution(name, arch))
        assert head == f"{name} on {arch}: passed"
        done.append(lesson)
    marked = [each.text for each in tab.find_elements("css selector", ".lessons button")]
    assert {each.split()[1] for each in marked if each.endswith("✓")} >= set(done)


def test_what_is_no_answer_is_text(server, tab):
    """Whatever is typed, it is said what was expected, as text; the page is the same page."""
    go(tab, f"{server.url}#course?lesson=veneer")
    count = "return document.querySelectorAll('script, img, iframe').length"
    before = tab.execute_script(count)
    for text, said in (
        ('task = "<img src=x onerror=alert(1)>"', "no task '<img src=x"),
        ('task = "one-plt"\nmove = "\\u202e"', "expected a number"),
        ("</textarea><script>", "no TOML"),
    ):
        head, _ = answer(tab, text)
        assert said in head
        assert "\u202e" not in head
        assert "/tmp" not in head
        assert tab.execute_script(count) == before


def test_the_course_is_for_everybody(server, tab):
    """No wider than the window, on a phone and on a desk; axe finds nothing wrong with what is shown."""
    go(tab, f"{server.url}#course?lesson=veneer")
    press(tab, "Compute the answer")
    wait(tab, "return document.querySelector('img.slide')?.naturalWidth")
    try:
        for width in (375, 1440):
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            tab.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            assert tab.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        tab.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    axe = pytest.importorskip("axe_core_python.base", reason="axe-core-python is not installed")
    answer(tab, solution("one-plt", "arm64"))
    press(tab, "A hint")
    tab.execute_script(axe.AXE_SCRIPT)
    script = """const done = arguments[0];
        axe.run(document).then((found) => done(found.violations.map((v) => [v.id, v.nodes[0].html])));"""
    assert tab.execute_async_script(script) == []
