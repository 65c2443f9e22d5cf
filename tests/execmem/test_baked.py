# SPDX-License-Identifier: GPL-2.0-or-later
"""A page that stands alone: views whose answers are in it say what commands say; others say why not."""

from __future__ import annotations

import pytest

from archs import arch as arch_by_name
from execmem.cli import main
from execmem.commands import explain as command
from execmem.comparing.compare import compare, workloads
from execmem.explaining import baked
from execmem.explaining.explain import document, html, load
from execmem.interleaved import chosen, graph
from execmem.serve.work import answer
from machine.face import Machine
from samples.course import LESSONS
from samples.modules import root
from tests.support import booted
from tests.support.browsing import complaints, follow, go, wait

ARCH = "arm64"
WORKLOAD = "no-modules"  # the quickest that does something
FILMED = ("vmalloc", "strata")
ASKING = ("run", "write", "designs", "poke", "kernel", "course")


def written(path, *views, kernel=None):
    """Write a page with some views; return its address."""
    machine = Machine(ARCH, root=root(ARCH))
    made = document([load(machine, lambda: machine.load("mathuser"))])
    if views:
        made |= baked.answers(views, [ARCH], kernel=kernel)
    path.write_text(html(made), "utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def kernel():
    """Return name, folder and architecture of a kernel that boots; None where there is none."""
    return next(iter(booted.one_of_each()), None)


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory, kernel):
    """Open a page with every view that can be in one; nothing is fetched, and no console complains."""
    views = ["designs", "poke", "course"]
    if kernel is not None:
        booted.machine(kernel[1])  # which keeps it booted
        views.append("kernel")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baked, "WORKLOAD", WORKLOAD)
        patch.setattr(baked, "FILMED", FILMED)
        patch.setitem(baked.ALONE, "course", lambda _archs: iter([("course",), ("demo", "reach")]))
        path = tmp_path_factory.mktemp("page") / "page.html"
        url = written(path, *views, kernel=None if kernel is None else str(kernel[1]))
    complaints(browser)
    go(browser, url)
    yield browser
    assert complaints(browser) == []
    fetched = "return performance.getEntriesByType('resource').map((each) => each.name)"
    assert all(each.startswith("data:") for each in browser.execute_script(fetched))


def lead(page, view):
    """Go to a view by its tab."""
    follow(page, page.find_element("css selector", f"#views a[href^='#{view}']"))
    assert not page.find_elements("css selector", ".verdict[role=alert]")


def test_films_are_those_of_compare(page):
    """The last moment of each design counts what `compare` counts."""
    lead(page, "designs")
    workload = workloads(WORKLOAD, [arch_by_name(ARCH)])[0][1]
    script = """
        const { designs } = execmem.app.columns[0];
        designs.design.left.value = arguments[0];
        return designs.film().then(() => {
          designs.seek(designs.last);
          const { measures } = designs.films.left.frame;
          return [measures.leaves.TEXT, measures.tlb_flushes_all, measures.pokes, measures.direct_map_splits];
        });
    """
    names = page.execute_script(
        "return [...execmem.app.columns[0].designs.design.left.options].map((o) => o.value)"
    )
    assert sorted(names) == sorted(FILMED)
    pair = arch_by_name(ARCH), workload
    for run in compare([pair], list(FILMED)):
        m = run.measures
        expected = [m.leaves["TEXT"], m.tlb_flushes_all, m.pokes, m.direct_map_splits]
        assert page.execute_script(script, run.design) == expected


def test_schedules_are_those_of_race(page):
    """As many states can be reached in each way of patching as the machine reaches."""
    lead(page, "poke")
    told = page.execute_script(
        "return execmem.app.columns[0].poke.told.scenarios.map((s) => [s.title, s.states.length])"
    )
    expected = []
    for scenario in chosen(arch_by_name(ARCH)):
        found = graph(scenario.race)
        if found is not None:
            expected.append([scenario.title, len(found[0])])
    assert told == expected
    page.find_element("xpath", "//button[text()='Let it go on']").click()
    assert page.find_elements("css selector", "ol.log li")


def test_lessons_are_there_and_say_how_tasks_are_checked(page):
    """An answer is shown as `demo` computes it; a task says by which command it is checked."""
    lead(page, "course")
    page.find_element("xpath", "//button[starts-with(., '1.2')]").click()
    page.find_element("xpath", "//button[.='Compute the answer']").click()
    wait(page, "return document.querySelector('img.slide')?.naturalWidth")
    text = page.find_element("class name", "lesson").text
    assert LESSONS["reach"].lesson.idea.partition(".")[0] in text
    task = page.find_element("css selector", ".lesson section[aria-label^=Task]").text
    assert "execmem course check" in task
    assert "Check" not in [b.text for b in page.find_elements("tag name", "button")]


def test_every_lesson_has_its_answer():
    """What the course may ask is in the page: all lessons, each a command that exists."""
    assert [words[1] for words in baked.ALONE["course"]([]) if words[0] == "demo"] == list(LESSONS)


def test_a_kernel_has_its_page_tables_and_exports(page, kernel):
    """Page tables are there, and exported symbols where the kernel has them; others are not known."""
    if kernel is None:
        pytest.skip("EXECMEM_KERNELS names no kernel")
    machine = booted.machine(kernel[1])
    lead(page, "kernel")
    release = page.find_element("css selector", "section[aria-label=Kernel] h3").text
    assert release.startswith(f"Linux {machine.kernel.release}")
    box = page.find_element("id", "find")
    box.send_keys("kfree\n")
    first = wait(page, "return document.querySelector('.found tbody tr')")
    cells = [cell.text for cell in first.find_elements("css selector", "td")]
    assert cells[:2] == [hex(machine.kernel.symbols["kfree"]), "kfree"]
    for asked, said in (
        ("0xffff", "not known in this page"),
        ("no_such_symbol", "not in this page"),
    ):
        box.clear()
        box.send_keys(f"{asked}\n")
        assert wait(page, f"return document.querySelector('.found').textContent.includes('{said}')")
    assert str(kernel[1].parent) not in page.execute_script(
        "return JSON.stringify([...execmem.app.source.answers])"
    )


def test_what_is_not_there_says_why_and_what_has_it(browser, tmp_path):
    """Each view that would ask has a tab, and names commands that have it."""
    go(browser, written(tmp_path / "page.html"))
    tabs = [each.text.lower() for each in browser.find_elements("css selector", "#views a")]
    assert set(ASKING) < set(tabs)
    for view in ASKING:
        lead(browser, view)
        said = browser.find_element("id", "absent").text
        assert "execmem serve" in said
        assert (f"--with {view}" in said) == (view in baked.ALONE)
    drop = "execmem.app.drop(new File(['x'], 'mine.ko'))"
    browser.execute_script(drop)
    assert "execmem explain mine.ko --html" in browser.find_element("id", "said").text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--json", "--with", "poke"), "--html FILE"),
        (("--html", "x.html", "--with", "kernel"), "--kernel PATH"),
        (("--html", "x.html", "--with", "nothing"), "nothing"),
    ],
)
def test_what_cannot_be_with_it_is_one_error(capsys, words, said):
    """A view without its page, without its kernel, and one that does not exist."""
    with pytest.raises(SystemExit) as ended:
        main(["explain", "mathuser", *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_the_command_names_what_there_is():
    """Options are told without importing what answers; they are the same."""
    assert tuple(baked.ALONE) == command.VIEWS


def test_a_question_without_an_answer_is_refused():
    """What a command refuses is refused here, in its words."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(baked.ALONE, "poke", lambda _archs: iter([("race", "--arch", "none")]))
        with pytest.raises(baked.ExecmemError, match="none"):
            baked.answers(["poke"], [ARCH])
    assert answer(("race", "--json", "--arch", "none"))["document"] is None
