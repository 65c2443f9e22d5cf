# SPDX-License-Identifier: GPL-2.0-or-later
"""The views poke, designs and kernel in a browser: they say what commands and the library say."""

from __future__ import annotations

import os
import random
from itertools import count

import attrs
import pytest

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from execmem.comparing.compare import compare, workloads
from execmem.comparing.film import film
from execmem.interleaved import chosen, rested, state_json
from tests.support import booted
from tests.support.browsing import complaints, go, wait
from tests.support.served import Served

LONG = "EXECMEM_LONG" in os.environ
STATES = 200 if LONG else 40  # of each architecture's ways of patching
MOMENTS = 20 if LONG else 1
WIDTHS = (375, 1440)
TURNS = count()  # no address is led to twice
COLUMN = "return execmem.app.columns[0]"


@pytest.fixture(scope="module")
def kernel():
    """Return name, folder and architecture of a kernel that boots; None where there is none."""
    return next(iter(booted.one_of_each()), None)


@pytest.fixture(scope="module")
def server(kernel):
    """Start a server, with a kernel where there is one."""
    if kernel is not None:
        booted.machine(kernel[1])  # once for all tests; the server finds it booted
    found = Served(*(() if kernel is None else ("--kernel", str(kernel[1]))))
    yield found
    found.close()


@pytest.fixture
def tab(server, browser):
    """Return a browser whose console has nothing to say in the end."""
    complaints(browser)
    yield browser
    assert complaints(browser) == []


@pytest.fixture(scope="module")
def opened(server, browser):
    """Return a function that leads the one page to a view; opening it anew takes a new process."""
    go(browser, f"{server.url}#designs?workload=no-modules")

    def lead(view, **chosen):
        """Go there, and wait for it."""
        where = "&".join(f"{key}={value}" for key, value in chosen.items())
        there = "document.body.dataset.ready = ''; location.hash = arguments[0]"
        browser.execute_script(there, f"{view}?{where}&once={next(TURNS)}")
        wait(browser)

    return lead


# Designs ------------------------------------------------------------------------------------------

COUNTERS = """
    const lines = [...document.querySelectorAll('.counters tbody tr')].map((line) =>
      [...line.children].map((cell) => (cell.querySelector('.bar span') ?? cell).textContent));
    return Object.fromEntries(lines.map(([name, ...rest]) => [name, rest]));
"""
PAGES = """
    const { designs } = execmem.app.columns[0];
    return ['left', 'right'].map((side) => {
      const film = designs.films[side];
      return Object.fromEntries(film.order.map((chunk) => {
        const about = film.about(chunk);
        return [`0x${film.starts[chunk].toString(16)}`, [about.leaf, about.leaves, about.live, about.types.sort()]];
      }));
    });
"""


def test_counters_are_those_of_compare(opened, tab, arch):
    """At any moment, the numbers beside a design are what `compare` says of a run that ends there."""
    chance = random.Random(f"designs {arch.name}")
    load = workloads("server", [arch])[0][1]
    for _ in range(MOMENTS):
        names = chance.sample(["vmalloc", "strata", "rox_cache", "three_block", "per_type"], 2)
        # What the default design puts off is done at the end of a workload.
        at = 80 if "strata" in names else chance.randrange(1, 81)
        opened("designs", arch=arch.name, left=names[0], right=names[1], at=at)
        said = tab.execute_script(COUNTERS)
        done = len(load.operations) * at // 80
        ended = attrs.evolve(load, operations=load.operations[:done])
        runs = [run.measures for run in compare([(arch, ended)], names)]
        expected = {
            "modules loaded": [m.modules for m in runs],
            "leaves that map text": [sum(m.leaves["TEXT"].values()) for m in runs],
            "splits of the direct map": [m.direct_map_splits for m in runs],
            "TLB flushes of all CPUs": [m.tlb_flushes_all for m in runs],
            "pokes": [m.pokes for m in runs],
            "PLT entries reserved": [m.plt_slots for m in runs],
            "modules before the first PLT entry": [m.modules_before_first_plt for m in runs],
        }
        for name, values in expected.items():
            assert said[name] == [f"{value:,}" for value in values], (name, names, at)
        moment = tab.find_element("id", "moment").text
        assert moment.startswith(f"{done:,} of {len(load.operations):,} operations")


def test_pictures_are_the_films(opened, tab, arch):
    """Going there and back, each box is what the film told until then."""
    chance = random.Random(f"films {arch.name}")
    load = workloads("bpf-50-pages", [arch])[0][1]
    opened("designs", workload="bpf-50-pages", arch=arch.name)
    told = [film(arch, load, design, frames=80) for design in ("vmalloc", "strata")]
    for at in (50, 0, *chance.sample(range(1, 50), 3)):
        tab.execute_script(f"execmem.app.columns[0].designs.seek({at})")
        for said, document in zip(tab.execute_script(PAGES), told, strict=True):
            expected = {}
            for each in document["frames"][: at + 1]:
                for changed in each["chunks"]:
                    runs = iter(changed["runs"])
                    cells = [(document["palette"][n], next(runs)) for n in runs]
                    mapped = [(cell, count) for cell, count in cells if cell["leaf"]]
                    small = [(c, n) for c, n in mapped if c["leaf"] < document["large"]]
                    leaf = "pages" if small else "large" if mapped else ""
                    types = sorted({c["type"] for c, _ in mapped if c["type"]})
                    start = str(document["chunks"][changed["chunk"]])
                    expected[start] = [leaf, sum(n for _, n in small), changed["live"], types]
            shown = {start: about for start, about in said.items() if about != ["", 0, 0, []]}
            assert shown == {k: v for k, v in expected.items() if v != ["", 0, 0, []]}


def test_a_film_is_played_and_stepped_by_keys(opened, tab):
    """Space plays and stops; arrows, Home and End go through it; the address has the moment."""
    from selenium.webdriver.common.keys import Keys

    opened("designs", workload="no-modules", pace="fast")
    section = tab.find_element("css selector", "section[aria-label=Designs]")
    at = "return execmem.app.columns[0].designs.at"
    section.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert tab.execute_script(at) == 1
    section.send_keys(Keys.END)
    assert tab.execute_script(at) == 80
    assert wait(tab, "return location.hash.includes('at=80')")
    section.send_keys(Keys.HOME, " ")
    assert wait(tab, f"{at} > 3")
    section.send_keys(" ")
    stopped = tab.execute_script(at)
    assert tab.find_element("id", "play").text == "Play"
    assert tab.execute_script(at) == stopped
    tab.find_element("css selector", "canvas.film").send_keys(Keys.ARROW_RIGHT)
    assert "0x" in tab.find_element("class name", "under").text
    assert tab.execute_script(at) == stopped


def test_inside_of_an_operation_leaves_split_and_heal(opened, tab):
    """One operation can be looked into: what is large in the end was in pages meanwhile."""
    opened("designs", left="rox_cache", right="vmalloc", closely=8)
    assert wait(tab, "return document.getElementById('moment').textContent.includes('taken')")
    split = """
        const { designs } = execmem.app.columns[0], { left } = designs.films, first = designs.at;
        designs.seek(left.last);
        const large = left.order.filter((chunk) => left.about(chunk).leaf === 'large'), found = [];
        for (let n = first; n < left.last; n++) {
          designs.seek(n);
          found.push(large.some((chunk) => left.about(chunk).leaf === 'pages'));
        }
        return found;
    """
    assert any(tab.execute_script(split))


# Poke ---------------------------------------------------------------------------------------------

WAYS = """
    const { poke } = execmem.app.columns[0];
    return poke.keys;
"""
LEFT_OUT = "return execmem.app.columns[0].poke.told.left_out.map((each) => each.name)"
CHOOSE = "execmem.app.columns[0].poke.choose({way: arguments[0], schedule: ''})"
SAID = """
    const { poke } = execmem.app.columns[0];
    return {
      choices: [...document.querySelectorAll('button.step')].map((b) => [Number(b.dataset.cpu), b.textContent]),
      memory: [...document.querySelectorAll('.lane table tbody tr')].map((r) => r.children[1].textContent),
      views: [...document.querySelectorAll('.lane table tbody tr')].map((r) =>
        [...r.children].slice(2).map((c) => [...c.querySelectorAll('.byte')].map((b) => b.textContent))),
      wrong: document.getElementById('verdict').classList.contains('refused'),
      schedule: poke.path.map((p) => p.pick),
    };
"""


def test_states_are_those_of_the_step_machine(opened, tab, arch):
    """Wherever a reader steps, choices, bytes and verdict are what the machine says there."""
    chance = random.Random(f"poke {arch.name}")
    opened("poke", arch=arch.name)
    if arch.text_poke is None:
        assert "no text_poke" in tab.find_element("class name", "verdict").text
        return
    keys, too_large = tab.execute_script(WAYS), tab.execute_script(LEFT_OUT)
    scenarios = [one for one in chosen(arch) if one.name not in too_large]
    assert len(scenarios) == len(keys)
    left = STATES
    while left > 0:
        at = chance.randrange(len(keys))
        race = scenarios[at].race
        tab.execute_script(CHOOSE, keys[at])
        state = race.start()
        for _ in range(chance.randrange(4, 30)):
            said, told = tab.execute_script(SAID), state_json(race, state)
            moves = [
                (actor, text, after)
                for actor in range(race.actors)
                for text, after in race.moves(rested(race, state), actor)
            ]
            assert sorted(said["choices"]) == sorted([a, text] for a, text, _ in moves)
            cells = [cell for place in race.places for cell in place.cells]
            assert said["memory"] == [told["memory"][cell] for cell in cells]
            assert said["views"] == [[view[cell] for view in told["views"]] for cell in cells]
            assert said["wrong"] == bool(told["wrong"])
            left -= 1
            if not moves:
                break
            pick = chance.randrange(len(moves))
            tab.execute_script("execmem.app.columns[0].poke.take(arguments[0])", pick)
            state = moves[pick][2]


def test_what_goes_wrong_is_shown_and_can_be_sent(opened, tab, arch):
    """The page finds the way to each mistake's outcome, and its address leads there again."""
    if arch.text_poke is None:
        pytest.skip(f"{arch.name} has no text_poke")
    opened("poke", arch=arch.name)
    keys = tab.execute_script(WAYS)
    for key in keys:
        tab.execute_script(CHOOSE, key)
        tab.find_element("xpath", "//button[text()='Show what goes wrong']").click()
        verdict = tab.find_element("id", "verdict")
        wrong = "refused" in verdict.get_attribute("class")
        assert wrong == (not key.startswith("way")), key
    schedule = ".".join(map(str, tab.execute_script(SAID)["schedule"]))
    text = tab.find_element("id", "verdict").text
    opened("poke", arch=arch.name, way=key, schedule=schedule)
    assert tab.find_element("id", "verdict").text == text


def test_cpus_are_stepped_by_keys(opened, tab):
    """0 lets the CPU that patches go on, Backspace takes it back, and the list says where it is."""
    from selenium.webdriver.common.keys import Keys

    opened("poke", arch="x86_64")
    section = tab.find_element("css selector", "section[aria-label=Poke]")
    section.send_keys("0", "0", "0")
    assert len(tab.execute_script(SAID)["schedule"]) == 3
    section.send_keys(Keys.BACKSPACE)
    assert len(tab.find_elements("css selector", "ol.log li")) == 2
    assert len(tab.find_elements("css selector", "[aria-current=step]")) == 1


# Kernel -------------------------------------------------------------------------------------------


@pytest.fixture
def shown(opened, tab, kernel):
    """Open the page tables of the kernel that is served; skip where there is none."""
    if kernel is None:
        pytest.skip("EXECMEM_KERNELS names no kernel")
    opened("kernel")
    return tab


def test_page_tables_are_those_of_the_kernel(shown, kernel):
    """Every entry that is looked at maps what the machine translates, with its rights."""
    machine = booted.machine(kernel[1])
    board, chance = machine.kernel.board, random.Random(7)
    lines = shown.execute_script(
        f"{COLUMN}.kernel.lines.filter((l) => l.mapped).map((l) => l.told.start)"
    )
    assert shown.find_element("css selector", "section[aria-label=Kernel] h3").text.startswith(
        f"Linux {machine.kernel.release}"
    )
    show = """
        const { kernel } = execmem.app.columns[0];
        kernel.choose(kernel.lines.find((line) => line.told.start === arguments[0]));
        return [...document.querySelectorAll('#entries tbody tr')].map((r) => [...r.children].slice(1, 3).map((c) => c.textContent));
    """
    told_of = 0
    for start in chance.sample(lines, min(40, len(lines))):
        for address, leads in shown.execute_script(show, start):
            if leads != "a device":
                assert board.translate(int(address, 16)) == int(leads, 16)
                told_of += 1
    assert told_of > 40


def test_symbols_are_found_and_lead_to_their_entries(shown, kernel):
    """A name leads to its address, rights and entry; an address to who is there."""
    machine = booted.machine(kernel[1])
    box = shown.find_element("id", "find")
    box.send_keys("kfree\n")
    assert wait(shown, "return document.querySelector('.found table')")
    first = shown.find_element("css selector", ".found tbody tr")
    address = machine.kernel.symbols["kfree"]
    assert [cell.text for cell in first.find_elements("css selector", "td")][:3] == [
        f"{address:#x}",
        "kfree",
        "R-X",
    ]
    first.find_element("css selector", "button").click()
    marked = shown.find_element("css selector", "#entries tr.own td:nth-child(2)").text
    page = int(marked, 16)
    assert page <= address < page + (2 << 20)


# All of them --------------------------------------------------------------------------------------


def press(tab, *keys):
    """Press keys, wherever the focus is; those of a name by their name."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    words = [getattr(Keys, key) if key.isupper() else key for key in keys]
    ActionChains(tab).send_keys(*words).perform()


def reach(tab, selector):
    """Press Tab until what a selector means has the focus."""
    for _ in range(60):
        press(tab, "TAB")
        if tab.execute_script("return document.activeElement.matches(arguments[0])", selector):
            return
    raise AssertionError(f"no key leads to {selector}")


def first(tab, selector):
    """Return the text of the first that a selector means."""
    return tab.find_element("css selector", selector).text


# View -> where keys lead, which are pressed there, what is another afterwards.
KEYS = {
    "where": (".slide", ("ARROW_RIGHT",), ".moved"),
    "what": (".list", ("ARROW_DOWN",), ".detail dd"),
    "how": ("[role=tab][aria-selected=true]", ("ARROW_LEFT",), ".step p"),
    "designs": ("#scrub", ("ARROW_RIGHT",), "#moment"),
    "poke": ("button.step", ("ENTER",), "#verdict"),
    "kernel": (".block", ("ARROW_RIGHT",), "#entries"),
    "course": (".lessons button:not([aria-current])", ("ENTER",), ".ask"),
}


@pytest.mark.parametrize("view", KEYS)
def test_keys_alone_are_enough(opened, tab, kernel, view):
    """Tab leads to the controls of a view, keys do its work, and who pressed one is still there."""
    if view == "kernel" and kernel is None:
        pytest.skip("EXECMEM_KERNELS names no kernel")
    selector, keys, changes = KEYS[view]
    opened(view, workload="no-modules", loads="arm64", arch="x86_64")
    reach(tab, selector)
    before = first(tab, changes)
    press(tab, *keys)
    assert first(tab, changes) != before
    assert tab.execute_script("return document.activeElement !== document.body")


def test_a_function_is_called_by_keys_alone(opened, tab):
    """A function is chosen by its name, arguments are typed, Enter calls; no choice loses the focus."""
    opened("run", loads="arm64", module="mathuser")
    reach(tab, "form select")
    press(tab, "mathuser_lcm", "TAB", "12 18", "ENTER")
    assert wait(tab, "return document.querySelector('.result')")
    assert first(tab, ".result").endswith("(36)")
    tab.execute_script("document.body.dataset.ready = ''; document.activeElement.blur()")
    reach(tab, "#design")
    press(tab, "vmalloc")
    wait(tab)
    assert tab.switch_to.active_element.get_attribute("id") == "design"
    assert "vmalloc" in first(tab, ".title")
    opened("write")
    reach(tab, "textarea")
    press(tab, "TAB")  # nobody is kept in there
    assert not tab.execute_script("return document.activeElement.matches('textarea')")


def test_paper_is_light_and_nothing_is_squeezed(opened, tab):
    """A page in the dark is printed dark on light, its map in the proportions it has on the sheet."""
    opened("where", loads="arm64")
    tab.execute_script("execmem.app.theme(true); window.dispatchEvent(new Event('beforeprint'))")
    tab.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        width, height, bitmap = tab.execute_script("""
            const map = document.querySelector('canvas.map'), { width, height } = map.getBoundingClientRect();
            return [width, height, map.width / map.height];
        """)
        assert width / height == pytest.approx(bitmap, rel=0.02)
        ink = "return getComputedStyle(document.body).color"
        assert tab.execute_script(ink) == "rgb(0, 0, 0)"
    finally:
        tab.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
        tab.execute_script("window.dispatchEvent(new Event('afterprint'))")
    assert tab.execute_script("return document.documentElement.classList.contains('dark')")
    tab.execute_script("execmem.app.theme(false)")


def test_colours_of_the_system_are_used(opened, tab):
    """Where a reader's system decides on colours, what is drawn uses them."""
    opened("where", loads="arm64")
    forced = [{"name": "forced-colors", "value": "active"}]
    tab.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": forced})
    try:
        assert wait(tab, f"{COLUMN}.map.colour('ink') === 'CanvasText'")
    finally:
        tab.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("view", ["designs", "poke", "kernel"])
def test_views_fit_phones_and_desks(opened, tab, view, width):
    """Nothing is wider than the window, and every picture has words."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    tab.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        opened(view, workload="no-modules", arch="x86_64", at=60)
        wide = tab.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width
        nameless = """
            return [...document.querySelectorAll('canvas, button, input, select')].filter((each) =>
              !(each.getAttribute('aria-label') || each.textContent.trim() || each.labels?.length)).length
        """
        assert tab.execute_script(nameless) == 0
    finally:
        tab.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
