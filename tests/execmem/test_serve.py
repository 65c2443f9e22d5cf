# SPDX-License-Identifier: GPL-2.0-or-later
"""The web page: who is answered, what a page may ask, and that views say what commands say.

Long because all of it asks one server, with one browser.
"""

from __future__ import annotations

import base64
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import zlib
from html import unescape
from itertools import pairwise
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

import click

from allocator.errors import ExecmemError, printable
from archs import ALL
from execmem import pages
from execmem.cli import cli, main
from execmem.serve import compiling
from execmem.serve.desks import FILE, Desk, Desks, Limits, TooMuch
from execmem.serve.kernel import Kernel
from execmem.serve.questions import ASKABLE, KERNEL, NotAsked, checked
from samples.modules import path
from tests.archs.facts import facts
from tests.loader.kernel.test_image import image_of
from tests.support import booted
from tests.support.browsing import complaints, follow, go, wait
from tests.support.btfwriter import blob
from tests.support.imagewriter import symbols
from tests.support.served import HEADER, Served

HERE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server():
    """Start a server; it ends as a command does that is interrupted."""
    found = Served()
    yield found
    assert found.close() in (0, 130)


@pytest.fixture
def desk(server):
    """Sit at a desk: the same as before, unless those of pages that came since took its place."""
    where = "/api/files/here.ko"
    if server.request("PUT", where, b"", **{HEADER: getattr(server, "kept", "")})[0] == 410:
        server.kept = server.desk()
    return server.kept


def test_an_interrupt_ends_the_server_with_one_line():
    """Also where it is sent to its group, and its parent passes it on."""
    command = [sys.executable, "-m", "execmem", "serve", "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, start_new_session=True) as process:
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said.strip()) == (130, "execmem: interrupted")


# Who is answered ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "attacker.example"},
        {"Host": "attacker.example:{port}"},
        {"Host": ""},
        {"Host": "[::1"},
        {"Origin": "http://attacker.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
    ],
    ids=lambda headers: " ".join(*headers.items()),
)
def test_others_are_not_answered(server, headers):
    """A name that was pointed here, and a page from elsewhere, get nothing, not even a desk."""
    port = str(urlsplit(server.url).port)
    chosen = {name: value.replace("{port}", port) for name, value in headers.items()}
    for method, where in (("GET", "/"), ("POST", "/api/desk"), ("GET", "/page/app.js")):
        status, _, text = server.request(method, where, **chosen)
        assert status in (400, 403), text


def test_names_of_this_machine_are_answered(server):
    """The loopback's names lead here; every answer forbids whatever comes from elsewhere."""
    port = urlsplit(server.url).port
    for host in ("127.0.0.1", "localhost", "[::1]"):
        status, headers, text = server.request("GET", "/", Host=f"{host}:{port}")
        assert status == 200
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "http" not in policy
        assert b"http" not in text.replace(b"http-equiv", b"")


@pytest.mark.parametrize(
    "where",
    ["/page/page.html", "/page/../cli.py", "/page/%2e%2e%2fcli.py", "/page/none.js", "/x", "/api"],
)
def test_no_other_file_is_sent(server, where):
    """The front end's files have names; there are no others."""
    assert server.request("GET", where)[0] in (400, 404)


def test_without_a_desk_nothing_is_answered(server):
    """Desks have names that nobody guesses."""
    for name in ("", "x", "../x"):
        status, found = server.ask(name, "archs")
        assert status == 410
        assert "reload" in found["error"]
    assert server.request("PUT", "/api/files/a.ko", b"x", **{HEADER: "x"})[0] == 410


# What may be asked --------------------------------------------------------------------------------


def test_what_can_be_asked_exists():
    """Every command and option of the list is one of the command line, and writes no file."""
    context = cli.make_context("execmem", [], resilient_parsing=True)
    for name, options in ASKABLE.items():
        command = cli.get_command(context, name)
        assert command is not None
        known = {o for p in command.params if isinstance(p, click.Option) for o in p.opts}
        assert {"--json", *options} <= known, name
        assert not options & {
            "--html",
            "--svg",
            "--png",
            "--record",
            "--root",
            "--core",
        }


@pytest.mark.parametrize(
    "words",
    [
        None,
        "archs",
        [],
        [1],
        ["serve"],
        ["gdb", "hello"],
        ["load"] + ["x"] * 100,
        ["load", "x" * 20000],
        ["load", "/etc/passwd"],
        ["load", "../x.ko"],
        ["load", ".."],
        ["load", "hello", "--root", "x"],
        ["load", "hello", "--root=x"],
        ["load", "hello", "--kernel", "running"],
        ["load", "hello", "--kernel", "hello"],
        ["load", "hello", "--kernel=auto"],
        ["load", "hello", "--svg", "x.svg"],
        ["load", "hello", "--design", "./x.py"],
        ["load", "hello", "--design=/x.py"],
        ["load", "hello", "-h"],
        ["run", "hello", "f", "file:x"],
        ["run", "hello", "--", "f", "file:x"],
        ["compare", "--workload", "/etc"],
        ["load", "a\0b"],
    ],
    ids=str,
)
def test_what_may_not_be_asked(words):
    """Files of the host, what writes, and what is no list of words are refused by name."""
    with pytest.raises(NotAsked, match="not a question of a page: "):
        checked(words)


def test_what_may_be_asked_stays_as_it_is():
    """Arguments that only look like paths are arguments, and negative numbers are no options."""
    words = ["run", "m.ko", "f", "str:/x", "-1", "--param", "path=/x", "--", "str:../y"]
    assert checked(words) == ("run", "--json", *words[1:])


def document_of(capsys, *words):
    """Return what a command prints."""
    with pytest.raises(SystemExit) as ended:
        main([str(words[0]), "--json", *map(str, words[1:])])
    assert not ended.value.code
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "words",
    [
        ("load", "mathuser"),
        ("explain", "mathuser", "--kaslr", "3"),
        ("run", "mathuser", "mathuser_lcm", "21", "6"),
        ("relocs", "tables"),
    ],
    ids=lambda words: words[0],
)
def test_an_answer_is_the_commands_document(server, desk, capsys, arch, words):
    """What a page is told is what the command prints, to the byte."""
    asked = (*words, "--arch", arch.name)
    status, found = server.ask(desk, *asked)
    assert (status, found["code"]) == (200, 0), found
    assert found["document"] == document_of(capsys, *asked)


def test_what_is_refused_is_told_without_folders_of_the_host(server, desk):
    """An answer says why not, and neither where this program nor where the desk is."""
    for words in (
        ("load", "nonesuch"),
        ("load", "nonesuch.ko"),
        ("load", "hello", "--design", "stratta"),
        ("run", "hello", "nonesuch"),
        ("load", "hello", "--arch", "vax"),
        ("load", "hello", "--seed", "x"),
        ("run", "failing"),
    ):
        status, found = server.ask(desk, *words)
        assert status == 200
        assert found["code"] in (1, 2), found
        assert found["said"]
        text = json.dumps(found)
        for folder in (str(HERE), "/tmp", str(Path.home()), sys.prefix):
            assert folder not in text
        assert "Traceback" not in text


@pytest.mark.parametrize("body", [b"", b"[", b"[]", b"{}", b"[" * 100000, b'{"words": 1}', b"\xff"])
def test_a_body_that_is_no_question_is_one_line(server, desk, body):
    """Whatever comes, an answer of JSON says what is wrong with it."""
    status, _, text = server.request("POST", "/api/ask", body, **{HEADER: desk})
    assert status == 400
    assert "\n" not in json.loads(text)["error"]


def test_a_booted_kernel_loads_what_is_dropped():
    """With --kernel a page's own process has it load a module, and no answer says where it lies."""
    if not os.environ.get("EXECMEM_LONG"):
        pytest.skip("boots a kernel twice in processes of their own (EXECMEM_LONG)")
    kernels = [kernel for kernel in booted.releases() if booted.tree(kernel[1]) is not None]
    if not kernels:
        pytest.skip("no kernel with modules among EXECMEM_KERNELS")
    _, folder, arch = kernels[0]
    server = Served("--kernel", str(folder))
    try:
        desk = server.desk()
        file = next(Path(booted.tree(folder)).rglob("md4.ko*"))
        where = f"/api/files/{file.name}"
        server.request("PUT", where, file.read_bytes(), **{HEADER: desk})
        found = server.ask(desk, "load", file.name, "--kernel", KERNEL)[1]["document"]
        (module,) = found["modules"]
        assert (module["name"], module["arch"], module["state"]) == ("md4", arch.name, "live")
        releases = {path.name for path in booted.tree(folder).glob("lib/modules/*")}
        assert module["kernel"] in releases
        assert str(folder.parent) not in json.dumps(found)
    finally:
        assert server.close() in (0, 130)


# Desks --------------------------------------------------------------------------------------------


def test_a_dropped_module_is_loaded(server, desk, arch):
    """A file that was dropped is asked for by the name that it got, whatever it was called."""
    for name in ("mine.ko", "%3C%2Fscript%3E%20%E2%80%AE.ko"):
        contents = path(arch.name, "sealed").read_bytes()
        status, _, text = server.request("PUT", f"/api/files/{name}", contents, **{HEADER: desk})
        assert status == 200
        given = json.loads(text)["name"]
        _, found = server.ask(desk, "load", given)
        (module,) = found["document"]["modules"]
        assert (module["arch"], given.endswith(".ko")) == (arch.name, True)


def test_desks_do_not_see_each_other(server):
    """What one page dropped the other cannot load, though it knows the name."""
    mine, other = server.desk(), server.desk()
    contents = path("x86_64", "hello").read_bytes()
    server.request("PUT", "/api/files/secret.ko", contents, **{HEADER: mine})
    assert server.ask(mine, "load", "secret.ko")[1]["code"] == 0
    assert server.ask(other, "load", "secret.ko")[1]["code"] == 1


def test_too_large_a_file_is_refused(server, desk):
    """No file is larger than the limit, and nothing of it is kept."""
    status, _, text = server.request("PUT", "/api/files/big.ko", bytes(FILE + 1), **{HEADER: desk})
    assert status == 413, text
    assert server.ask(desk, "load", "big.ko")[1]["code"] == 1


def test_a_killed_process_costs_one_answer():
    """Whoever waited is told; the next question is answered."""
    with_limits = Limits(seconds=20)
    desk = Desk(with_limits)
    try:
        fence = desk.started()
        assert fence.removed or fence.kept
        found = []
        asking = threading.Thread(
            target=lambda: found.append(desk.ask(("compare", "--json", "--workload", "debian")))
        )
        asking.start()
        time.sleep(0.5)
        os.kill(desk._worker.process.pid, signal.SIGKILL)
        asking.join(20)
        (answer,) = found
        assert (answer["code"], answer["document"]) == (1, None)
        assert "SIGKILL" in answer["said"][0]
        assert desk.ask(("archs", "--json"))["code"] == 0
    finally:
        desk.close()
    assert not desk.folder.exists()


def test_an_answer_that_takes_too_long_is_given_up():
    """The time of a question is bounded, and the process is new afterwards."""
    desk = Desk(Limits(seconds=1))
    try:
        desk.started()
        answer = desk.ask(("compare", "--json", "--workload", "debian"))
        assert "1 seconds" in answer["said"][0]
    finally:
        desk.close()


def test_desks_and_files_are_bounded(monkeypatch):
    """The one that was idle for longest goes first; files of one have a sum."""
    monkeypatch.setattr("execmem.serve.desks.FILES", 10)
    desks = Desks(Limits(desks=1))
    try:
        first = desks.open()
        held = desks.find(first)
        assert held.put("a.ko", bytes(8)) == "a.ko"
        assert held.put("../.a b.ko", bytes(2)) == "a_b.ko"
        with pytest.raises(TooMuch):
            held.put("c.ko", bytes(1))
        assert held.put("a.ko", bytes(1)) == "a.ko"
        assert sorted(p.name for p in held.folder.iterdir()) == ["a.ko", "a_b.ko"]
        second = desks.open()
        assert desks.find(first) is None
        assert not held.folder.exists()
        assert desks.find(second) is not None
    finally:
        desks.close()


def test_a_port_that_is_taken_is_one_line(server, capsys):
    """Somebody listens there already; and an address of others is nobody's."""
    port = str(urlsplit(server.url).port)
    for words in (["--port", port], ["--address", "192.0.2.1"], ["--address", "no such name"]):
        with pytest.raises(SystemExit) as ended:
            main(["serve", *words])
        assert ended.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "cannot listen there" in line


# In a browser -------------------------------------------------------------------------------------


@pytest.fixture
def tab(server, browser):
    """Return a browser whose console has nothing to say in the end."""
    complaints(browser)
    yield browser
    assert complaints(browser) == []


VIEWS = {  # what is there of each, in its box
    "where": "return arguments[0].querySelector('.verdict').textContent.startsWith('Loads')",
    "what": "return arguments[0].querySelectorAll('.row').length > 3",
    "how": "return arguments[0].querySelectorAll('.steps button').length >= 6",
    "run": "return arguments[0].querySelectorAll('form option').length > 3",
}


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_shows_every_architecture(server, tab, view):
    """A view's address leads to it, for every architecture, and no request leaves the server."""
    ran = [arch for arch in ALL if arch.run is not None]
    loads = ",".join(arch.name for arch in ran)
    go(tab, f"{server.url}#{view}?module=mathuser&loads={loads}")
    titles = [each.text for each in tab.find_elements("class name", "title")]
    assert len(titles) == len(ran)
    for number, (title, arch) in enumerate(zip(titles, ran, strict=True)):
        assert arch.title in title
        box = tab.find_elements("class name", "view")[number]
        assert tab.execute_script(VIEWS[view], box), arch.name
    loaded = tab.execute_script(
        "return performance.getEntriesByType('resource').map((each) => each.name)"
    )
    assert loaded
    assert all(each.startswith((server.url, "data:")) for each in loaded)
    (here,) = tab.find_elements("css selector", "nav a[aria-current]")
    assert here.get_attribute("href").partition("#")[2].startswith(view)


def test_a_call_says_what_run_says(server, tab, capsys):
    """The view *run* shows the result, the log, the tree of calls and the words for a terminal."""
    ran = [arch for arch in ALL if arch.run is not None]
    loads = ",".join(arch.name for arch in ran)
    given = "".join(f"&function.{n}=mathuser_lcm&args.{n}=21+6" for n in range(len(ran)))
    go(tab, f"{server.url}#run?loads={loads}{given}")
    for arch, box in zip(ran, tab.find_elements("class name", "view"), strict=True):
        box.find_element("css selector", "form button").click()
        tab.execute_script("window.box = arguments[0]", box)
        said = wait(tab, "return window.box.querySelector('.result')?.textContent")
        words = ("run", "mathuser", "mathuser_lcm", "21", "6", "--arch", arch.name)
        found = document_of(capsys, *words)
        assert f"= {found['result']} (42)" in said
        assert box.find_element("css selector", "pre").text == "\n".join(found["log"])
        told = box.find_element("css selector", ".output code").text
        assert told == f"execmem run mathuser --arch {arch.name} -- mathuser_lcm 21 6"


STATES = 200 if os.environ.get("EXECMEM_LONG") else 12  # relocations that are looked at


def test_a_relocation_says_what_relocs_says(server, tab, capsys, arch):
    """At random relocations place, target, X, bytes and disassembly are those of the command."""
    found = document_of(capsys, "relocs", "tables", "--arch", arch.name)["relocations"]
    go(tab, f"{server.url}#what?module=tables&loads={arch.name}")
    script = """execmem.select(arguments[0]);
        const terms = [...document.querySelectorAll('.detail dt')].map((each) => each.textContent);
        const told = [...document.querySelectorAll('.detail dd')].map((each) => each.textContent);
        const bits = [...document.querySelectorAll('.word')].map((word) =>
            [word.firstChild.textContent, [...word.querySelectorAll('i')].map((i) => i.textContent).join('')]);
        return [Object.fromEntries(terms.map((term, n) => [term, told[n]])), bits]"""
    assert tab.execute_script("return execmem.state.motion.count") == len(found)
    chance = random.Random(23)
    for number in chance.sample(range(len(found)), min(STATES, len(found))):
        each = found[number]
        told, bits = tab.execute_script(script, number)
        where = f" in {each['containing']}" if each["containing"] else ""
        assert told["place P"] == f"{each['place']}{where}"
        assert told["S+A"] == each["target"]
        assert told["type"] == f"{each['type']}: X = {each['formula']}"
        if "X" in told:
            assert told["X"].rpartition("= ")[2] == each["value"]
        for state in ("before", "after"):
            code = " ".join(f"{byte:02x}" for byte in bytes.fromhex(each[state]))
            text = each[f"{state}_text"]
            assert code in told[state]  # of an instruction the page shows all bytes
            assert " ".join(told[state].split()).endswith(" ".join(text.split()))
        words = dict(bits)
        if len(bits) == 2:  # one field: its word is in the bytes, as they were and as they are
            for state, digits in words.items():
                word = int(digits, 2).to_bytes(len(digits) // 8, "little")
                assert word in bytes.fromhex(each[state])


def test_memory_is_what_load_says(server, tab, capsys):
    """Regions of the view *how* lie where `load` puts them, and are freed where it frees them."""
    ran = [arch for arch in ALL if arch.run is not None]
    go(tab, f"{server.url}#how?module=sealed&loads={','.join(arch.name for arch in ran)}")
    script = """return [...arguments[0].querySelectorAll('details table:first-of-type')].slice(0, 1).map((table) =>
        [...table.tBodies[0].rows].map((row) => [...row.cells].map((cell) => cell.textContent)))[0]"""
    for arch, box in zip(ran, tab.find_elements("class name", "view"), strict=True):
        words = ("load", "sealed", "--init", "--arch", arch.name)
        (module,) = document_of(capsys, *words)["modules"]
        wanted = {r["type"]: (r["address"], r["prot"]) for r in module["regions"]}
        for kind, address, _size, prot in tab.execute_script(script, box):
            assert wanted[kind][0] == address
            assert prot.endswith("freed") == (wanted[kind][1] == "freed")
            assert prot.startswith(wanted[kind][1]) or prot.endswith("freed")


def test_a_tree_of_calls_is_as_wide_as_its_instructions(server, tab, capsys):
    """Bars of callees lie under their callers', in proportion, as `trace` counted."""
    go(tab, f"{server.url}#run?module=patchable&function.0=patchable_fib&args.0=4&show.0=tree")
    tab.find_element("css selector", "form button").click()
    script = """return [...document.querySelectorAll('.flames span')].map((s) =>
        [s.textContent, parseFloat(s.style.left), parseFloat(s.style.width), parseFloat(s.style.top)])"""
    bars = wait(tab, f"const bars = (() => {{ {script} }})(); return bars.length ? bars : null")
    found = document_of(
        capsys, "trace", "patchable", "--args", "--arch", "x86_64", "--", "patchable_fib", "4"
    )
    calls = found["calls"]
    total = sum(c["instructions"] for c in calls if c["depth"] == 0)
    assert [bar[0] for bar in bars] == [c["function"] for c in calls]
    ends: dict[int, float] = {}
    for (_, left, width, top), call in zip(bars, calls, strict=True):
        assert width == pytest.approx(call["instructions"] / total * 100, abs=0.31)
        assert top == call["depth"] * 24
        assert left >= ends.get(call["depth"], 0) - 0.01
        ends[call["depth"]] = left + call["instructions"] / total * 100
        if call["depth"]:
            assert left + width <= ends[call["depth"] - 1] + 0.5


def test_a_breakpoint_shows_what_probe_shows(server, tab, capsys):
    """At each stop the registers are those of `probe`, and those that changed are marked."""
    place = "patchable_fib+0x8"
    words = ("patchable_fib", "4")
    go(tab, f"{server.url}#run?module=patchable&loads=arm64&function.0=patchable_fib&args.0=4")
    assert not tab.find_element("css selector", "[placeholder^=function]").is_displayed()
    chosen = f"&show.0=registers&at.0={place.replace('+', '%2B')}"
    go(tab, f"{tab.current_url}{chosen}")
    tab.find_element("css selector", "form button").click()
    script = """return [...document.querySelectorAll('.output tbody tr')].map((row) =>
        [...row.cells].map((cell) => [cell.textContent, cell.querySelector('.changed') !== null]))"""
    rows = wait(tab, f"const rows = (() => {{ {script} }})(); return rows.length ? rows : null")
    found = document_of(capsys, "probe", f"patchable:{place}", "--arch", "arm64", "--", *words)
    hits = found["hits"]
    assert [row[0][0] for row in rows] == list(hits[0])
    for name, *cells in rows:
        values = [hit[name[0]] for hit in hits[:12]]
        assert [cell[0] for cell in cells] == values
        changed = [a != b for a, b in pairwise(values)]
        assert [cell[1] for cell in cells] == [False, *changed]
    assert found["instruction"] in tab.find_element("class name", "output").text


def test_a_region_that_is_dragged_moves_by_pages(server, tab):
    """Dragging text on the map moves it, alone where that is chosen, and the verdict follows."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.support.ui import Select

    go(tab, f"{server.url}#where?loads=x86_64")
    Select(tab.find_element("css selector", "[aria-label='What moves']")).select_by_value("text")
    place = """const map = execmem.state.map; map.module(); map.paint();
        const at = map.motion.view.regions.findIndex((r) => r.type === 'TEXT'), [lo, hi] = map.regions()[at];
        return [(map.x(lo) + map.x(hi)) / 2 - map.canvas.clientWidth / 2, map.canvas.clientHeight]"""
    x, height = tab.execute_script(place)
    span = int(tab.execute_script("return String(execmem.state.map.span)"))
    width = tab.execute_script("return execmem.state.map.canvas.clientWidth")
    canvas = tab.find_element("class name", "map")
    chain = ActionChains(tab).move_to_element_with_offset(canvas, int(x), 314 - height // 2)
    chain.click_and_hold().move_by_offset(100, 0).release().perform()
    text, data = tab.execute_script(
        "const m = execmem.state.motion; return [String(m.text), String(m.data)]"
    )
    assert int(data) == 0
    assert int(text) % 0x1000 == 0
    assert int(text) == pytest.approx(span * 100 / width, rel=0.02)
    wait(tab, "return location.hash.includes('text.0')")
    assert "text +" in tab.find_element("class name", "moved").text


def test_architectures_stand_side_by_side(server, tab):
    """Two loads are shown beside each other; what is done to one is its own, and in the address."""
    go(tab, f"{server.url}#where?loads=x86_64")
    tab.execute_script("document.body.dataset.ready = ''")
    tab.find_element("id", "beside").click()
    wait(tab)
    titles = [each.text for each in tab.find_elements("class name", "title")]
    assert len(titles) == 2
    assert ("x86-64" in titles[0], "arm64" in titles[1]) == (True, True)
    press = "[...document.querySelectorAll('article:last-child button')].find((b) => b.textContent === 'First refusal above').click()"
    tab.execute_script(press)
    verdicts = [each.text for each in tab.find_elements("class name", "verdict")]
    assert verdicts[0].startswith("Loads")
    assert verdicts[1].startswith("Refused")
    wait(tab, "return location.hash.includes('text.1')")
    address = tab.current_url
    go(tab, address)
    assert [e.text for e in tab.find_elements("class name", "verdict")] == verdicts
    follow(tab, tab.find_element("css selector", "nav a[href^='#what']"))
    assert len(tab.find_elements("css selector", ".list")) == 2
    tab.execute_script("document.body.dataset.ready = ''")
    tab.find_element("css selector", "[aria-label='Close x86_64']").click()
    wait(tab)
    follow(tab, tab.find_element("css selector", "nav a[href^='#where']"))
    (verdict,) = tab.find_elements("class name", "verdict")
    assert verdict.text == verdicts[1]


NAMED = {
    "markup": b"</script>",
    "terminal": b"\x1b]0;\x07\x9b2J",
    "turned": "\u202eabcdef".encode(),
}


@pytest.mark.parametrize("name", NAMED.values(), ids=NAMED)
def test_hostile_names_are_text(server, tab, tmp_path, name):
    """Whatever a module's symbols and sections are called, a page shows it and is the same page."""
    image = path("x86_64", "mathuser").read_bytes().replace(b"mathuser_", name)
    image = image.replace(b".rodata\0", b"<b>x</b>")
    file = tmp_path / "hostile.ko"
    file.write_bytes(image)
    go(tab, f"{server.url}#where?module=hello")
    count = "return document.querySelectorAll('script, img, iframe').length"
    before = tab.execute_script(count)
    tab.execute_script("document.body.dataset.ready = ''")
    tab.find_element("id", "file").send_keys(str(file))
    wait(tab)
    assert not tab.find_elements("css selector", "#said.refused")
    for view in VIEWS:
        follow(tab, tab.find_element("css selector", f"nav a[href^='#{view}']"))
        assert tab.execute_script(count) == before
        text = tab.find_element("tag name", "main").text
        assert "\x1b" not in text
        assert "\u202e" not in text


UNSEEN = {"markup": b"<b>xxx", "turned": "\u202e\x1b\x85".encode()}


@pytest.mark.parametrize("name", UNSEEN.values(), ids=UNSEEN)
def test_names_are_written_out(server, tab, tmp_path, name):
    """Names of functions and sections, and what is logged, are in no view more than letters."""
    image = path("x86_64", "logbook").read_bytes().replace(b"logboo", name)
    file = tmp_path / "hostile.ko"
    file.write_bytes(image.replace(b".rodata\0", name + b"z\0"))
    go(tab, f"{server.url}#where?module=hello")
    tab.execute_script("document.body.dataset.ready = ''")
    tab.find_element("id", "file").send_keys(str(file))
    wait(tab)
    for view in ("where", "what", "how", "run"):
        follow(tab, tab.find_element("css selector", f"nav a[href^='#{view}']"))
        assert not tab.find_elements("css selector", ".refused")
        if view == "run":
            press = "[...document.querySelectorAll('main button')].find((b) => b.textContent === 'Run').click()"
            tab.execute_script(press)
            wait(tab, "return document.querySelector('main').textContent.includes(': open')")
        made = (
            "return [...document.querySelectorAll('main b, main script')].map((e) => e.textContent)"
        )
        assert "xxx" not in "".join(tab.execute_script(made))
        page = tab.execute_script("return document.documentElement.outerHTML") + tab.title
        page = re.sub(' value="[^"]*"', "", page)  # what is asked, not what is shown
        assert {each for each in page if not each.isprintable()} <= set("\n\t\xa0")
    shown = printable(name.decode())
    assert f"{shown}k: open" in tab.find_element("tag name", "main").text
    assert f"{shown}k_add" in tab.find_element("tag name", "main").text


def test_a_file_that_is_no_module_is_refused_in_words(server, tab, tmp_path):
    """The column says what the command says."""
    file = tmp_path / "broken.ko"
    file.write_bytes(b"no module")
    go(tab, server.url)
    tab.execute_script("document.body.dataset.ready = ''")
    tab.find_element("id", "file").send_keys(str(file))
    wait(tab)
    said = tab.find_element("css selector", ".verdict.refused").text
    assert "broken.ko" in said
    assert "/tmp" not in said


def test_no_view_is_wider_than_the_window(server, tab):
    """On a phone and on a desk nothing has to be scrolled sideways."""
    go(tab, f"{server.url}#where?loads=arm64,riscv64")
    try:
        for width in (375, 1440):
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            tab.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            for view in VIEWS:
                follow(tab, tab.find_element("css selector", f"nav a[href^='#{view}']"))
                found = tab.execute_script("return document.documentElement.scrollWidth")
                assert found <= width, view
    finally:
        tab.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_everybody_can_use_every_view(server, tab):
    """Axe finds nothing wrong: labels, roles, order of headings, contrast in either colours."""
    axe = pytest.importorskip("axe_core_python.base", reason="axe-core-python is not installed")
    go(tab, f"{server.url}#where?loads=arm64,x86_64&theme=light&workload=no-modules")
    tab.execute_script(axe.AXE_SCRIPT)
    script = """const done = arguments[0];
        const wrong = (found) => found.violations.map((v) => [v.impact, v.id, v.nodes[0].html]);
        (async () => {
          const found = wrong(await axe.run(document));
          document.getElementById("theme").click();
          found.push(...wrong(await axe.run(document, { runOnly: ["color-contrast"] })));
          document.getElementById("theme").click();
          done(found);
        })();"""
    links = [each.get_attribute("href") for each in tab.find_elements("css selector", "nav a")]
    for name in [link.partition("#")[2].partition("?")[0] for link in links]:
        follow(tab, tab.find_element("css selector", f"nav a[href^='#{name}']"))
        assert tab.execute_async_script(script) == [], name


def test_a_page_can_be_embedded(server, tab):
    """What *Share* says leads there again; its frame is the page without its title."""
    go(tab, f"{server.url}#where?loads=arm64&text.0=0x5000&data.0=0x5000")
    tab.find_element("id", "share").click()
    inputs = tab.find_elements("css selector", "#sharing input")
    link, frame = [unescape(each.get_attribute("value")) for each in inputs]
    assert link == tab.current_url
    source = frame.partition('src="')[2].partition('"')[0]
    assert source.partition("#")[2] == link.partition("#")[2]
    go(tab, source)
    assert "20 KiB" in tab.find_element("class name", "moved").text
    assert not tab.find_element("id", "title").is_displayed()
    assert tab.find_element("class name", "verdict").is_displayed()


def test_files_of_the_front_end_are_what_the_page_names():
    """Every module that a module imports is in the map, and in the wheel's data."""
    import re

    for name in pages.modules():
        text, kind = pages.file(name)
        assert kind == "text/javascript"
        assert set(re.findall(r'from "execmem/([^"]*)"', text)) <= set(pages.modules())
    assert pages.file("page.html") is None
    with pytest.raises(ExecmemError):
        checked(["no"])


# What is typed ------------------------------------------------------------------------------------

TYPED = """#include "module.h"
int mine_sum(const u8 *bytes, int count)
{
	int sum = 0;
	while (count--)
		sum += *bytes++;
	return sum;
}
MODULE_LICENSE("GPL");
"""


def compiler(arch):
    """Skip where nothing compiles for an architecture."""
    if arch not in compiling.targets():
        pytest.skip(f"no compiler for {arch.name}, or no Landlock")


def test_what_is_typed_is_compiled_and_runs(server, desk, arch):
    """A source becomes a module of the desk, which runs."""
    compiler(arch)
    body = json.dumps({"arch": arch.name, "kind": "c", "text": TYPED})
    status, _, text = server.request("POST", "/api/build", body, **{HEADER: desk})
    assert status == 200, text
    name = json.loads(text)["name"]
    _, found = server.ask(desk, "run", name, "--", "mine_sum", "hex:01020304", "4")
    assert found["document"]["result"] == "0xa"


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("c", "int x = ;", "mine.c:1:9: error"),
        ("c", '#include "/etc/passwd"', "Permission denied"),
        ("c", f'#include "{HERE}/setup.cfg"', "Permission denied"),
        ("assembly", '.incbin "/etc/passwd"', "file not found"),
        ("assembly", ".rept 2000000000\n.quad 1\n.endr", "memory"),
    ],
    ids=["error", "include", "ours", "incbin", "memory"],
)
def test_what_is_not_compiled_is_told(server, desk, kind, text, said):
    """A compiler says why, and reads no file of the host for it, nor more memory than there is."""
    arch = ALL[0]
    compiler(arch)
    body = json.dumps({"arch": arch.name, "kind": kind, "text": text})
    status, _, answer = server.request("POST", "/api/build", body, **{HEADER: desk})
    assert status == 422
    error = json.loads(answer)["error"]
    assert said in error
    assert "root:" not in error
    assert "/tmp/execmem" not in error


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"{}", b'{"arch": 1, "kind": "c", "text": "x"}'),
        *(
            b'{"arch": "arm64", "kind": "rust", "text": "x"}',
            b'{"arch": [], "kind": {}, "text": 1}',
        ),
    ],
    ids=str,
)
def test_what_is_no_source_is_refused(server, desk, body):
    """Whatever comes instead of a source is one line."""
    assert server.request("POST", "/api/build", body, **{HEADER: desk})[0] == 400


def test_typing_in_a_browser(server, tab):
    """The view *write* compiles, and the other views show what came of it; the address keeps it."""
    if not compiling.targets():
        pytest.skip("no compiler, or no Landlock")
    arch = compiling.targets()[-1]
    go(tab, f"{server.url}#write")
    tab.execute_script(
        "const t = document.querySelector('textarea'); t.value = arguments[0];"
        " t.dispatchEvent(new Event('change'));"
        " [...document.querySelectorAll('button')].find((b) => b.textContent === 'Compile').click()",
        TYPED,
    )
    count = len(compiling.targets())
    script = "return document.querySelectorAll('.output .verdict').length"
    assert wait(tab, f"{script} === {count}")
    assert not tab.find_elements("css selector", ".output .refused")
    wait(tab, "return location.hash.includes('packed=')")
    follow(tab, tab.find_element("css selector", "nav a[href^='#what']"))
    assert "mine on" in tab.find_element("class name", "title").text
    assert arch.name in tab.find_element("id", "view").get_attribute("innerHTML")
    packed = parse_qs(urlsplit(tab.current_url).fragment.partition("?")[2])["packed"][0]
    padded = packed + "=" * (-len(packed) % 4)
    assert zlib.decompress(base64.urlsafe_b64decode(padded), -15).decode() == TYPED
    go(tab, tab.current_url)  # as who was sent it: it is compiled again, at another desk
    assert "mine on" in tab.find_element("class name", "title").text
    follow(tab, tab.find_element("css selector", "nav a[href^='#write']"))
    area = tab.find_element("tag name", "textarea")
    assert area.get_attribute("value") == TYPED
    change = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('change'))"
    noise = "".join(random.Random(3).choices("abcdefghijklmnopqrstuvwxyz", k=16_000))
    tab.execute_script(change, area, f"/* {noise} */")
    assert wait(tab, "return document.querySelector('main').innerText.includes('Too long for an')")
    assert wait(tab, "return !location.hash.includes('packed=')")


# A kernel -----------------------------------------------------------------------------------------


def test_without_a_kernel_nobody_is_asked_about_one(server):
    """The word that stands for it is refused, and the page is told that there is none."""
    status, found = server.ask(server.desk(), "kernel", KERNEL, "--ptdump")
    assert status == 400
    assert "--kernel PATH" in found["error"]
    assert json.loads(server.request("POST", "/api/desk")[2])["kernel"] is None


def test_a_kernel_is_known_by_its_name_alone(tmp_path, arch):
    """Its facts and symbols are told to pages, its folder is not; the same question is asked once."""
    base = facts(arch).load.image_base
    image = tmp_path / "vmlinuz-mine"
    image.write_bytes(image_of(arch, symbols(base), "6.12", blob().blob()))
    kernel = Kernel(str(image))
    try:
        words = checked(["kernel", KERNEL, "--symbol", "_text"])
        found = kernel.ask(words)
        assert kernel.name == "vmlinuz-mine"
        assert found["code"] == 0, found
        assert found["document"]["places"]["_text"]["address"] == f"{base:#x}"
        assert str(tmp_path) not in json.dumps(found)
        assert found["document"]["sources"]["image"] == "vmlinuz-mine"
        assert kernel.ask(words) is found
        again = kernel.ask(checked(["kernel", KERNEL, "--type", "none"]))
        assert again["document"]["definitions"] == {"none": None}
    finally:
        kernel.close()
    with pytest.raises(ExecmemError, match="no such file"):
        Kernel(str(tmp_path / "none"))


def test_a_desk_is_told_which_kernel_it_is(tmp_path, monkeypatch):
    """Where --kernel means the server's, a desk gets its path, and pages get none of it back."""
    (tmp_path / "image").write_bytes(b"")
    kernel = Kernel(str(tmp_path / "image"))
    asked = []
    monkeypatch.setattr(kernel, "ask", asked.append)
    words = checked(["run", "m.ko", "--kernel", KERNEL, "--", "f", KERNEL])
    assert kernel.given(words) == (*words[:4], str(tmp_path / "image"), "--", "f", KERNEL)
    assert [each[0] for each in asked] == ["kernel"]  # it boots where that is kept
    found = {"said": [f"{tmp_path}/image: no"], "document": {"at": [f"{tmp_path}/image"]}}
    assert kernel.hidden(found) == {"said": ["image: no"], "document": {"at": ["image"]}}


def test_modules_of_a_kernel_are_named(tmp_path):
    """Pages get the names of a tree's modules, desks its folder; an answer has neither folder."""
    tree = tmp_path / "lib" / "modules" / "6.12"
    tree.mkdir(parents=True)
    (tree / "modules.dep").write_text("kernel/fs/b-c.ko.xz: kernel/lib/a.ko\nkernel/lib/a.ko:\n")
    image = tmp_path / "vmlinuz"
    image.write_bytes(b"")
    assert Kernel(str(image)).modules == ()
    for kernel in (Kernel(str(tmp_path)), Kernel(str(image), str(tmp_path))):
        assert kernel.modules == ("a", "b_c")
        kernel.ask = list
        words = kernel.given(checked(["load", "a", "--kernel", KERNEL]))
        assert words[-2:] == ("--root", str(tree))
        found = {"said": [f"{tree}/kernel/lib/a.ko: no"], "document": None}
        assert kernel.hidden(found)["said"] == ["kernel/lib/a.ko: no"]
    with pytest.raises(ExecmemError):
        Kernel(str(image), str(tmp_path / "none"))


def test_without_its_extra_the_server_says_which(monkeypatch, capsys):
    """One line names what is missing, and how it is installed; --root alone is of no use."""
    for name in ("uvicorn", "starlette"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(SystemExit) as ended:
                main(["serve", "--port", "0"])
        assert ended.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "execmem[serve]" in line
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--root", "."])
    assert ended.value.code == 2


def test_no_module_runs_where_the_kernel_is_asked(tmp_path):
    """That process is outside of the fence: what a page dropped goes to the page's own."""
    (tmp_path / "image").write_bytes(b"")
    kernel = Kernel(str(tmp_path / "image"))
    for words in (["run", "hello", "--", "f", KERNEL], ["load", "hello", "--kernel", KERNEL]):
        with pytest.raises(NotAsked, match="own desk"):
            kernel.ask(checked(words))
