# SPDX-License-Identifier: GPL-2.0-or-later
"""The explorable page: its rules are the link's, and it works in a browser."""

from __future__ import annotations

import base64
import gzip
import json
import random
import re
from pathlib import Path

import attrs
import numpy as np
import pytest

import archs
from archs import reloc
from archs.op import Op, Term
from archs.reloc import Reach, Reloc, Rows
from execmem.cli import main
from execmem.explaining.explain import _row as row_json
from execmem.explaining.explain import document, html, load
from execmem.relocs import Code
from loader.errors import RelocationError
from loader.link import link_view
from loader.listing import Listing
from loader.motion import Motion
from machine.face import Machine
from samples.modules import root
from tests.support import booted
from tests.support.browsing import follow, go, wait

HERE = Path(__file__).parents[2]
POSITIONS = 200
SPANS = (1 << 12, 1 << 20, 1 << 27, 1 << 31, 1 << 33)


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    """Open the page of a sample module on every architecture; no errors on its console."""
    path = tmp_path_factory.mktemp("page") / "mathuser.html"
    main_ok(["explain", "mathuser", "--html", str(path)])
    show(browser, path)
    yield browser
    assert browser.get_log("browser") == []


def main_ok(words: list[str]) -> None:
    """Run the command line; it must not refuse."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert not ended.value.code


def show(browser, path) -> None:
    """Open a page and wait until its data is unpacked."""
    go(browser, path.as_uri())


def view(page, name: str) -> None:
    """Go to a view by its tab."""
    follow(page, page.find_element("css selector", f"#views a[href^='#{name}']"))


def pick(page, load) -> None:
    """Choose a load in the list, by its number or name, and wait for it."""
    from selenium.webdriver.support.ui import Select

    chosen = Select(page.find_element("id", "view"))
    now = chosen.first_selected_option
    if load in (now.text, int(now.get_attribute("value"))):
        return
    page.execute_script("document.body.dataset.ready = ''")
    if isinstance(load, int):
        chosen.select_by_index(load)
    else:
        chosen.select_by_visible_text(load)
    wait(page)


def the_button(page, label):
    """Return the button of a label."""
    (found,) = [each for each in page.find_elements("tag name", "button") if each.text == label]
    return found


def moves(count: int) -> list[tuple[int, int]]:
    """Return moves of text and data around every reach, half of them together."""
    chance = random.Random(8)

    def move() -> int:
        far = chance.choice((-1, 0, 1)) * chance.choice(SPANS) * chance.randrange(1, 5)
        return far + 0x1000 * chance.randrange(-600, 600)

    found = []
    while len(found) < count:
        text = move()
        found.append((text, text if len(found) % 2 else move()))
    return found


REGION = Op("REGION", (Term(1, ("S", "A")), Term(-1, ("P",), granule=1 << 33, bias=4)))


def test_what_rounds_to_a_region_is_computed_anew(browser, tmp_path, arch):
    """Of a row whose X does not follow a move the page tells failures as the row does."""
    machine = Machine(arch, root=root(arch.name))
    view = load(machine, lambda: machine.load("mathuser", init=False))
    page, motion = document([view]), Motion.of(view.loaded)
    chosen = [
        n
        for n, row in arch.link.relocations.items()
        if row.op is Op.PC and not (row.high or row.got)
    ]
    region = Reloc(chosen[0], "R_TOY", REGION, reloc.data(8), Reach(0, 1 << 33))
    toy = attrs.evolve(
        arch, link=attrs.evolve(arch.link, relocations=Rows(dict.fromkeys(chosen, region)))
    )
    shown = page["views"][0]["rows"]
    shown |= {str(n): row_json(toy, n) for n in chosen if str(n) in shown}
    path = tmp_path / "page.html"
    path.write_text(html(page), "utf-8")
    show(browser, path)
    mine = np.flatnonzero(np.isin(motion.type, chosen))
    if not mine.size:
        pytest.skip(f"nothing in modules of {arch.name} counts from its place")

    def failing(text, other):
        """Return which of the rows fail, by the rule that a region has."""
        shift = {0: 0, 1: text, 2: other}
        there = []
        for one in mine.tolist():
            place = int(motion.place[one]) + shift[int(motion.moves[0][one])] + 4
            target = int(motion.target[one]) + shift[int(motion.moves[1][one])]
            if place % (1 << 64) >> 33 != target % (1 << 64) >> 33:
                there.append(one)
        return there

    script = """
        const m = execmem.state.motion;
        m.move(BigInt(arguments[0]), BigInt(arguments[1]));
        return [...m.status.keys()].filter((i) => m.status[i] !== 0);
    """
    ends = set()
    for text, other in moves(60):
        said = browser.execute_script(script, str(text), str(other))
        expected = failing(text, other)
        assert [one for one in said if one in set(mine.tolist())] == expected
        ends.add(bool(expected))
    assert ends == {False, True}
    edges = """
        const m = execmem.state.motion;
        m.view.classes = m.view.classes.filter((c) => !m.rows[c.row].follows);
        return [1, -1].map((way) => String(m.edge(way, false)));
    """
    assert not failing(0, 0)
    for found in map(int, browser.execute_script(edges)):
        before = found - (0x1000 if found > 0 else -0x1000)
        assert failing(found, found)
        assert not failing(before, before)


def outcomes(browser, positions: list[tuple[int, int]]):
    """Return, per placement, the page's failed relocations, entries used, and bytes."""
    script = """
        const m = execmem.state.motion;
        return arguments[0].map(([text, data]) => {
          m.move(BigInt(text), BigInt(data));
          const failed = [], bytes = [], texts = [];
          for (let i = 0; i < m.count; i++) {
            const s = m.sections.get(m.section[i]);
            if (m.status[i] === 2) failed.push([s.name, m.offset[i]]);
            bytes.push([...m.bytes(i, true)]);
            texts.push(m.before[i] < 0 ? null : m.textAfter(i));
          }
          return {failed, used: m.used, bytes, texts};
        });
    """
    words = [[str(text), str(data)] for text, data in positions]
    return browser.execute_script(script, words)


@pytest.mark.parametrize("name", ["mathuser", "tables"])
@pytest.mark.parametrize("stubs", [False, True], ids=["as built", "with PLT and GOT"])
def test_moved_modules_are_what_the_link_makes_of_them(browser, tmp_path, arch, name, stubs):
    """At 200 placements failures, PLT entries, bytes and disassembly equal the link's."""
    machine = Machine(arch, root=root(arch.name), stub_sections=stubs)
    view = load(machine, lambda: machine.load(name, init=False))
    path = tmp_path / "page.html"
    path.write_text(html(document([view])), "utf-8")
    show(browser, path)
    module = view.loaded
    undefined = zip(
        module.view.undefined_indices.tolist(), module.view.undefined_names, strict=True
    )
    symbols = {symbol: int(module.linked.symbols[index]) for index, symbol in undefined}
    placed = {i: s for i, s in module.sections.items() if s.type is not None}
    positions = [(0, 0), *moves(POSITIONS)]
    ends = set()
    for (text, data), said in zip(positions, outcomes(browser, positions), strict=True):
        there = {
            index: (s.address + (text if s.type.is_text else data)) % (1 << 64)
            for index, s in placed.items()
        }
        refusal = linked = None
        try:
            linked = link_view(module.view, module.layout, there, symbols, percpu=module.percpu)
        except RelocationError as error:
            refusal = error
        if linked is None:
            assert refusal is not None
            expected = sorted([f.section, f.offset] for f in refusal.failures)
            assert sorted(said["failed"]) == expected, (hex(text), hex(data))
            ends.add("refused")
            continue
        assert said["failed"] == []
        used = {init: use.used for init, use in linked.plt.items()}
        assert said["used"] == [used.get(init, 0) for init in sorted(module.layout.plt)]
        listing = Listing(module.view, linked, there)
        code = Code(listing)
        for number, relocation in enumerate(listing.select()):
            _, (after, text_after) = code.texts(relocation)
            around = code.around(relocation)
            assert bytes(said["bytes"][number]) == after, relocation
            if around is not None:
                assert said["texts"][number] == text_after, relocation
        ends.add("loads")
    assert ends == {"refused", "loads"}


def test_typing_an_address_moves_the_module(page):
    """A typed address far away is refused by the verdict; the way home is one button."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    field = page.find_element(By.CLASS_NAME, "text-at")
    loaded = field.get_attribute("value")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("0xffff000000000000", Keys.ENTER)
    verdict = page.find_element(By.CLASS_NAME, "verdict")
    assert verdict.text.startswith("Refused")
    assert int(verdict.get_attribute("data-failed")) > 0
    the_button(page, "Where it was loaded").click()
    assert verdict.text.startswith("Loads")
    assert field.get_attribute("value") == loaded


def test_an_address_that_is_none_is_refused_where_it_was_typed(page):
    """Words and addresses within a page leave the module where it is."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    field = page.find_element(By.CLASS_NAME, "text-at")
    for word in ("here", "0xffffffffc0000001"):
        before = page.find_element(By.CLASS_NAME, "verdict").text
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(word, Keys.TAB)
        assert not page.execute_script("return arguments[0].checkValidity()", field)
        assert page.find_element(By.CLASS_NAME, "verdict").text == before
    the_button(page, "Where it was loaded").click()


def test_dragging_the_slider_moves_the_module(page):
    """The slider's ends are 16 GiB away, which no x86-64 module survives."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    slide = page.find_element(By.CLASS_NAME, "slide")
    width = slide.size["width"]
    ActionChains(page).click_and_hold(slide).move_by_offset(width // 2 - 4, 0).release().perform()
    assert "GiB" in page.find_element(By.CLASS_NAME, "moved").text
    assert page.find_element(By.CLASS_NAME, "verdict").text.startswith("Refused")
    the_button(page, "Where it was loaded").click()
    assert page.find_element(By.CLASS_NAME, "moved").text == "not moved"


def test_switching_shows_the_other_architecture(page):
    """Each load of the list has its own title, relocations and steps."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    loads = len(Select(page.find_element(By.ID, "view")).options)
    titles = []
    for number in range(loads):
        pick(page, number)
        titles.append(page.find_element(By.CLASS_NAME, "title").text)
        assert page.find_element(By.CLASS_NAME, "verdict").text.startswith("Loads")
        view(page, "how")
        assert len(page.find_elements(By.CSS_SELECTOR, ".steps button")) >= 6
        view(page, "where")
    assert len(set(titles)) == len(titles) == len(archs.ALL)
    pick(page, 0)


def test_the_list_works_by_keyboard(page):
    """Arrow keys select relocations, and the detail follows."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    view(page, "what")
    listing = page.find_element(By.CLASS_NAME, "list")
    listing.send_keys(Keys.ARROW_DOWN)
    first = page.find_element(By.CLASS_NAME, "detail").text
    listing.send_keys(Keys.ARROW_DOWN)
    second = page.find_element(By.CLASS_NAME, "detail").text
    assert "place P" in first
    assert "place P" in second
    assert first != second
    selected = page.find_elements(By.CSS_SELECTOR, ".rows [aria-selected=true]")
    assert len(selected) == 1
    assert listing.get_attribute("aria-activedescendant") == selected[0].get_attribute("id")
    view(page, "where")


def test_the_map_works_by_keyboard_and_buttons(page):
    """Plus zooms in, arrows pan, 2^64 shows everything, Instruction a few bytes."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    def span() -> int:
        return int(page.execute_script("return String(execmem.state.map.span)"))

    canvas = page.find_element(By.CLASS_NAME, "map")
    buttons = {b.text: b for b in page.find_elements(By.CSS_SELECTOR, ".zoom button")}
    buttons["2^64"].click()
    assert span() == 1 << 64
    canvas.send_keys("+")
    assert span() == 1 << 63
    page.execute_script("execmem.select(0)")
    buttons["Instruction"].click()
    assert span() < 64
    start = page.execute_script("return String(execmem.state.map.start)")
    canvas.send_keys(Keys.ARROW_RIGHT)
    assert page.execute_script("return String(execmem.state.map.start)") != start
    buttons["Reach"].click()


def test_first_refusal_is_the_first_page_that_fails(page):
    """One page less than the button's move still loads, and the module there does not."""
    from selenium.webdriver.common.by import By

    for label, back in (("First refusal above", -0x1000), ("First refusal below", 0x1000)):
        the_button(page, label).click()
        assert page.find_element(By.CLASS_NAME, "verdict").text.startswith("Refused")
        script = "const m = execmem.state.motion, t = m.text + BigInt(arguments[0]);"
        page.execute_script(script + "execmem.place(t, t)", back)
        assert page.find_element(By.CLASS_NAME, "verdict").text.startswith("Loads")
    the_button(page, "Where it was loaded").click()


def test_the_tutorial_presses_what_is_there(page):
    """Step 5 of the tutorial names a list, its entry and buttons in order, and each does its work."""
    import re

    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    text = (HERE / "docs" / "tutorial.md").read_text("utf-8")
    step = re.search(r"## 5[.].*?```\n\n(.*?)\n## ", text, re.DOTALL)
    assert step is not None
    said = re.findall(r"[*]([^*]+)[*]", " ".join(step[1].split()))
    entry, label, *buttons = said
    (chosen,) = [
        each for each in page.find_elements(By.TAG_NAME, "label") if each.text.startswith(label)
    ]
    select = Select(chosen.find_element(By.TAG_NAME, "select"))
    (option,) = [each.text for each in select.options if entry in each.text]
    verdicts = []
    pick(page, option)
    for name in buttons:
        (button,) = [
            each
            for each in page.find_elements(By.TAG_NAME, "button")
            if each.text == name and each.is_displayed()
        ]
        button.click()
        verdicts.append(page.find_element(By.CLASS_NAME, "verdict").text)
    assert len(verdicts) == 3
    through, refused, home = verdicts
    assert "PLT" in through
    assert through.startswith("Loads")
    assert refused.startswith("Refused")
    assert home.startswith("Loads")
    pick(page, 0)
    buttons = page.find_elements(By.XPATH, "//button[contains(., 'PLT')]")
    assert len(buttons) == 2
    for each in buttons:  # as the tutorial says of x86-64
        assert each.get_attribute("aria-disabled") == "true"
        each.click()
        assert "have no PLT" in page.find_element(By.CLASS_NAME, "verdict").text
    the_button(page, "Where it was loaded").click()


def test_steps_show_memory_that_is_never_writable_and_executable(page):
    """The time line's page table has no W with X at any step, and init memory goes at the end."""
    views = page.execute_script("return execmem.state.views")
    for view in views:
        names = [step["name"] for step in view["steps"]]
        wanted = ["before", "allocate", "relocate", "finalise", "write", "finish", "init"]
        assert names[: len(wanted)] == wanted
        assert names[-1] == "free init"
        for step in view["steps"]:
            assert not [s for s in step["spans"] if {"W", "X"} <= set(s["prot"])]


def test_the_command_says_what_it_wrote(tmp_path, capsys):
    """`--json` lists the loads that the page holds; the file stands alone."""
    path = tmp_path / "hello.html"
    main_ok(["explain", "hello", "--html", str(path), "--also", "vmalloc", "--json"])
    views = json.loads(capsys.readouterr().out)["views"]
    assert len({(v["arch"], v["design"]) for v in views}) == len(views) == 2 * len(archs.ALL)
    text = path.read_text("utf-8")
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert not re.search(r'(src|href)="(?!data:)', text)


def test_an_unwritable_file_is_one_line(tmp_path, capsys):
    """A folder that is not there is one line with its name."""
    with pytest.raises(SystemExit) as ended:
        main(["explain", "hello", "--html", str(tmp_path / "no" / "page.html")])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "page.html: No such file or directory" in line


def data_of(path):
    """Return the document that a page holds."""
    packed = re.search(r'<script id="data"[^>]*>([^<]*)</script>', path.read_text("utf-8"))
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


def test_a_booted_kernel_decides(tmp_path, capfd):
    """`explain --kernel`: modules lie where the kernel puts them, and the link is as it made it."""
    kernels = [kernel for kernel in booted.releases() if booted.tree(kernel[1]) is not None]
    if not kernels:
        pytest.skip("no kernel with modules among EXECMEM_KERNELS")
    _, folder, arch = kernels[0]
    machine = booted.machine(folder, booted.tree(folder))
    path, options = tmp_path / "page.html", ("--kernel", folder, "--root", booted.tree(folder))

    def run(*words):
        with pytest.raises(SystemExit) as done:
            main([str(word) for word in words])
        return done.value.code or 0, *capfd.readouterr()

    code, out, err = run("explain", "md4", "--html", path, "--json", *options)
    assert (code, err) == (0, "")
    (view,) = json.loads(out)["views"]
    assert (view["module"], view["arch"]) == ("md4", arch.name)
    assert view["design"] == machine.models
    page = data_of(path)["views"][0]
    with machine.fork():
        module = machine.load("md4")
        wanted = {s.name: hex(s.address) for s in module.sections.values()}
        assert {s["name"]: s["start"] for s in page["sections"]} == wanted
        text = machine.kernel.symbols["_text"]
    (image,) = [band for band in page["bands"] if band["kind"] == "kernel image"]
    assert int(image["start"], 0) == text
    code, _out, err = run("explain", "md4", "--html", path, "--also", "vmalloc", *options)
    assert code == 2
    assert "--also: a booted kernel places what it loads" in err
    code, _out, err = run("explain", "nobody", "--html", path, *options)
    assert (code, err.count("\n")) == (1, 1), err
