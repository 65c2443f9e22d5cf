# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem compare`: keys, tables, charts, traces, folders of modules, refusals."""

from __future__ import annotations

import json
import sys
from xml.etree import ElementTree as ET

import pytest

import archs
from allocator import DESIGNS
from allocator.types import MemType
from allocator.workloads import Runner
from execmem import Machine
from execmem.cli import main
from execmem.comparing.compare import branch_reach, compare, execmem_for, measured, workloads
from execmem.comparing.comparison import svg
from loader.elf import parse
from samples.modules import names, path, root
from tests.archs.facts import facts

KEYS = set(
    "arch design workload modules modules_before_first_plt plt_slots leaves large_share "
    "direct_map_splits tlb_flushes padding_bytes largest_free_share".split()
)


@pytest.fixture
def run(capsys):
    """Run `execmem compare`; return exit code, stdout and stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        code = 0
        try:
            main(["compare", *(str(word) for word in words)])
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


def batched(runs: list[dict]) -> list[tuple[dict, dict]]:
    """Return the runs in pairs: one architecture under two designs."""
    return list(zip(runs[::2], runs[1::2], strict=True))


def runs_of(out: str) -> list[dict]:
    """Return the runs of a JSON document without what time changes."""
    found = json.loads(out)["runs"]
    for one in found:
        del one["seconds"], one["microseconds_per_operation"]
    return found


def test_json_has_the_keys_that_scripts_rely_on(run):
    """Each run has the keys; types have counts by leaf size; shares lie between 0 and 1."""
    options = ("--design", "vmalloc", "--design", "default", "--json", "--check")
    code, out, err = run("--workload", "no-modules", *options)
    found = runs_of(out)
    assert (code, err) == (0, "")
    assert [one["arch"] for one in found] == [a.name for a in archs.ALL for _ in range(2)]
    assert {one["design"] for one in found} < set(DESIGNS)
    for one in found:
        assert one.keys() >= KEYS
        assert one["workload"] == "no-modules"
        for kind in MemType:
            assert list(one["leaves"][kind.name]) == leaf_names(one["arch"], 4)
            assert 0 <= one["large_share"][kind.name] + one["run_share"][kind.name] <= 1
        assert 0 <= one["largest_free_share"] <= 1


def test_no_modules_needs_no_loader_and_stays_in_reach(run):
    """Without modules every trampoline and thunk still lands where a branch reaches the image."""
    _, out, _ = run("--workload", "no-modules", "--design", "default", "--json")
    for one in runs_of(out):
        assert one["modules"] == one["out_of_reach"] == 0
        assert not one["failures"]
        assert one["leaves"]["TEXT"]["4KiB"] + one["leaves"]["TEXT"]["2MiB"] > 0


def test_fifty_pages_miss_at_least_five_times_as_often_as_one_large_leaf(run):
    """Published are 1,600 against 300 misses a second: here for every core of the model."""
    designs = ("--design", "vmalloc", "--design", "default")
    _, out, _ = run("--workload", "bpf-50-pages", *designs, "--json")
    for pages, large in batched(runs_of(out)):
        assert used(pages["leaves"]["TEXT"]) == {"4KiB": 50}
        assert used(large["leaves"]["TEXT"]) == {"2MiB": 1}
        for core, misses in pages["itlb_misses"].items():
            assert misses >= 5 * large["itlb_misses"][core]
            assert misses > 0


def test_text_of_the_else_branch_is_refused_or_needs_plt_entries(run, arch):
    """Where no PLT helps, modules and the reason are named; the default loads them all."""
    designs = ("--design", "vmalloc_else", "--design", "default")
    _, out, _ = run("--workload", "server", "--arch", arch.name, *designs, "--json")
    (broken, whole), *_ = batched(runs_of(out))
    assert not whole["failures"]
    assert whole["plt_slots"] == 0
    if arch.link.call is None:
        assert not broken["failures"]
    elif arch.plt is None or arch.plt.got_section:
        assert "does not reach the kernel image" in broken["failures"][0]["reason"]
    assert len(broken["failures"]) + broken["modules"] == whole["modules"]


def leaf_names(arch, page):
    """Return what a type's leaves are called with pages of so many KiB, by the manual's runs."""
    count, _ = facts(archs.arch(arch)).load.runs.get(page, (0, 0))
    sizes = [page, page * count, page * page * 128]  # a table has 128 entries for each KiB
    return [f"{size}KiB" if size < 1024 else f"{size // 1024}MiB" for size in sizes if size]


def used(leaves):
    """Return the sizes of leaves that there are, and how many."""
    return {size: count for size, count in leaves.items() if count}


def test_runs_are_what_the_manuals_say(arch):
    """How many entries are one leaf, for pages and for large leaves, and that no other page has any."""
    found = {
        each.page >> 10: (each.run // each.page, each.large_run // each.large)
        for each in arch.loads.pagings
        if each.run or each.large_run
    }
    assert found == facts(arch).load.runs
    assert arch.loads.paging(8 << 10).leaves == (8 << 10, 8 << 20)


@pytest.mark.parametrize(("page", "large"), [(16, "32MiB"), (64, "512MiB")])
def test_pages_of_other_sizes(run, page, large):
    """Every design runs where an architecture has such pages; leaves are counted by their names."""
    size = f"{page}KiB"
    code, out, _ = run("--workload", "no-modules", "--page-size", size, "--check", "--json")
    found = runs_of(out)
    assert code == 0
    having = [a.name for a in archs.ALL if page << 10 in a.loads.page_sizes]
    assert [one["arch"] for one in found] == [name for name in having for _ in DESIGNS]
    for one in found:
        assert one["page_size"] == page << 10
        known = leaf_names(one["arch"], page)
        assert list(one["leaves"]["TEXT"]) == known
        assert set(known) <= one["direct_map_after"].keys()
        entries = sum(
            count * (facts(archs.arch(one["arch"])).load.runs[page][0] if name == "2MiB" else 1)
            for name, count in used(one["leaves"]["TEXT"]).items()
        )
        assert one["leaf_entries"]["TEXT"] == entries
        if one["design"] == "strata" and "2MiB" in known:
            assert used(one["leaves"]["TEXT"]).keys() <= {"2MiB", large}
        assert sum(one["leaves"]["TEXT"].values()) > 0
        assert not one["failures"]
    small = runs_of(run("--workload", "no-modules", "--arch", "arm64", "--json")[1])
    for one, other in zip(small, found, strict=False):  # arm64 comes first
        assert one["live_bytes"] == other["live_bytes"]
        if one["design"] == "vmalloc":  # pages only
            assert one["leaves"]["TEXT"]["4KiB"] >= other["leaves"]["TEXT"][size]
    code, out, _ = run("--workload", root("arm64"), "--page-size", size)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert f"share under {large[:-3]} {large[-3:]} leaves" in " ".join(out.split())


def test_an_architecture_without_such_pages_is_refused(run):
    """By name, in one line, where it was asked for; else it is passed over."""
    code, _, err = run("--arch", "arm64", "--arch", "x86_64", "--page-size", "16KiB")
    assert (code, err) == (1, "execmem: x86_64: no pages of 16 KiB; it has 4 KiB\n")
    code, _, err = run("--page-size", "8KiB")
    assert code == 2


def test_tables_fit_80_columns_for_every_design(run):
    """Every design has its lines, nothing is wider than 80 columns or coloured."""
    code, out, _ = run("--workload", root("arm64"))
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    first_words = [line.split()[0] for line in out.splitlines() if line.strip()]
    for design in DESIGNS:
        assert first_words.count(design) >= 2  # a third time where something was refused


def test_a_recorded_run_replays_with_the_same_numbers(run, tmp_path):
    """The trace of a run gives the run's measures again, on its own architecture."""
    trace = tmp_path / "server.jsonl"
    options = ("--design", "per_type", "--json")
    _, first, _ = run("--workload", "server", "--arch", "riscv64", "--record", trace, *options)
    code, second, _ = run("--workload", trace, *options)
    assert code == 0
    assert runs_of(first) == runs_of(second)


def test_a_folder_of_modules_is_a_workload(run, arch):
    """A folder holds one workload per architecture: its modules, dependencies first."""
    code, out, _ = run("--workload", root(arch.name), "--design", "vmalloc", "--json", "--check")
    (one,) = runs_of(out)
    assert (code, one["arch"]) == (0, arch.name)
    assert one["modules"] == len(names())
    assert not one["failures"]
    ((_, load),) = workloads(str(root(arch.name)), [])
    order = [operation.module.name for operation in load.operations]
    assert order.index("mathlib") < order.index("mathuser")


def test_sizes_of_a_module_are_those_of_the_loaded_one(arch):
    """A module's numbers are the regions that the loader allocates for it."""
    machine = Machine(arch.name, root=root(arch.name), design="vmalloc")
    for name in ("hello", "mathlib", "checksums"):
        report = machine.load(name).report
        numbers = measured(parse(path(arch.name, name).read_bytes(), name))
        found = {region.type: region.size for region in numbers.regions}
        assert found == {kind: region.size for kind, region in report.regions.items()}
        assert numbers.calls[0] > 0 or name != "hello" or arch.link.call is None


def test_one_window_for_everything_is_full_long_before_the_last_module():
    """arm64's direct window holds about 1,755 of Debian's modules under page-granular areas."""
    arm64 = archs.arch("arm64")
    ((_, load),) = workloads("debian-alphabetical", [arm64])
    runner = Runner(execmem_for(arm64, "vmalloc"), branch_reach(arm64))
    for operation in load.operations[:1800]:
        runner.step(operation)
    measures = runner.measure()
    assert not measures.failures
    # 1,755 is first fit of core regions alone; freed init pages move the border a little.
    assert measures.modules_before_first_plt == pytest.approx(1755, abs=10)
    assert 0 < measures.plt_modules <= 1800 - measures.modules_before_first_plt


def test_the_chart_has_a_bar_for_every_run_and_measure(run, tmp_path):
    """The SVG is well-formed and has a labelled bar per design, architecture and measure."""
    file = tmp_path / "chart.svg"
    code, _, _ = run("--workload", "no-modules", "--design", "vmalloc", "--svg", file)
    assert code == 0
    tree = ET.parse(file)
    bars = tree.findall("{http://www.w3.org/2000/svg}rect")
    assert len(bars) % len(archs.ALL) == 0
    assert len(bars) >= 5 * len(archs.ALL)
    assert max(float(bar.get("width")) for bar in bars) > 100
    said = [text.text for text in tree.findall("{http://www.w3.org/2000/svg}text")]
    assert {"vmalloc", *(arch.name for arch in archs.ALL)} <= set(said)


def test_the_chart_depends_on_the_numbers_only():
    """Two runs of one workload draw the same chart."""
    pairs = workloads("no-modules", [archs.arch("x86_64")])
    assert svg(compare(pairs, ["vmalloc"])) == svg(compare(pairs, ["vmalloc"]))


def test_a_design_that_cannot_work_runs_when_it_is_named(run):
    """Counterexamples are left out by default; named, they run and show what is refused."""
    code, out, _ = run(
        "--workload", root("x86_64"), "--design", "vmalloc_else", "--design", "vmalloc"
    )
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("x86_64 vmalloc_else:")]
    assert "refused" in line
    assert "does not reach the kernel image" in " ".join(out.split())
    _, out, _ = run("--workload", root("x86_64"))
    assert "vmalloc_else" not in out


def test_a_png_without_matplotlib_is_refused(run, tmp_path, monkeypatch):
    """The refusal names the extra to install and writes nothing."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    file = tmp_path / "chart.png"
    code, out, err = run(
        "--workload", "no-modules", "--arch", "arm64", "--design", "vmalloc", "--png", file
    )
    assert (code, out) == (1, "")
    assert "execmem[plots]" in err
    assert not file.exists()


def test_a_png_is_a_picture(run, tmp_path):
    """With matplotlib the file is a PNG."""
    pytest.importorskip("matplotlib")
    file = tmp_path / "chart.png"
    run("--workload", "no-modules", "--arch", "arm64", "--design", "vmalloc", "--png", file)
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--design", "nope"], 2, "no design 'nope'; there are default, vmalloc"),
        (["--workload", "nope"], 2, "no workload and no path 'nope'; there are debian"),
        (["--workload", "{tmp}"], 1, "no module of any kernel"),
        (["--workload", "{tmp}/bad.jsonl"], 1, "bad.jsonl, line 1: not JSON"),
        (["--workload", "{tmp}/mips.jsonl"], 1, "mips"),
        (["--workload", "{arm64}", "--arch", "riscv64"], 1, "no module of riscv64"),
        (
            [
                "--workload",
                "no-modules",
                "--svg",
                "{tmp}",
                "--arch",
                "arm64",
                "--design",
                "vmalloc",
            ],
            1,
            "directory",
        ),
        (["--workload", "no-modules", "--arch", "arm64", "--record", "{tmp}"], 1, "directory"),
        (["--arch", "mips"], 2, "mips"),
        (["--workload", "no-modules", "--record", "{tmp}/t"], 2, "one --arch"),
    ],
)
def test_bad_input_is_refused(run, tmp_path, words, code, said):
    """What is wrong with the words is said in one line; nothing is printed as a result."""
    bad, mips = tmp_path / "run" / "bad.jsonl", tmp_path / "run" / "mips.jsonl"
    bad.parent.mkdir()
    bad.write_text("{", "utf-8")
    mips.write_text('{"trace": 1, "arch": "mips", "workload": "w"}\n', "utf-8")
    places = {"tmp": bad.parent, "arm64": root("arm64")}
    found, out, err = run(*(word.format(**places) for word in words))
    assert (found, out) == (code, "")
    assert said in err
    assert err.count("\n") == 1 or code == 2


@pytest.mark.parametrize("designs", [("default", "vmalloc"), ("default",), ("vmalloc",)])
def test_more_flushes_are_explained_as_long_as_there_are_more(run, arch, designs):
    """Where the default design flushes more often than one beside it, a sentence says why."""
    words = [word for design in designs for word in ("--design", design)]
    words = ("compare", "--workload", "probes", "--arch", arch.name, *words)
    _, text, _ = run(*words[1:])
    _, document, _ = run(*words[1:], "--json")
    counts = {one["design"]: one["tlb_flushes"] for one in json.loads(document)["runs"]}
    more = counts.get("strata", 0) > min(counts.values())
    assert ("The default design, strata, flushes" in " ".join(text.split())) is more
    for column in "modules refused PLT window padding us/op data splits flushes pokes".split():
        assert f"{column}: " in text or f"{column}, " in text or f"{column} " in text


def test_times_that_compare_nothing_are_not_shown(run):
    """A design under which modules are refused has done less: its time is no measure."""
    words = "--workload server --arch x86_64 --design vmalloc_else --design vmalloc".split()
    _, text, _ = run(*words)
    refused, whole = (
        next(line.split() for line in text.splitlines() if line.startswith(f"{name} "))
        for name in ("vmalloc_else", "vmalloc")
    )
    assert int(refused[2]) > 0
    assert refused[-1] == "-"
    assert whole[-1].isdigit()


def test_a_design_that_fails_ends_its_own_run(run, tmp_path):
    """The others go on; the failure is told with operation and request, in text and in JSON."""
    file = tmp_path / "bad.py"
    file.write_text(
        "from allocator.designs import Vmalloc\n"
        "class Bad(Vmalloc):\n    name = 'bad'\n    def seal(self, allocation): 1 / 0\n"
    )
    words = ("--design", file, "--design", "vmalloc", "--workload", "server", "--arch", "arm64")
    code, text, err = run(*words)
    assert code == 1
    assert "\nvmalloc " in text
    assert "\nbad " not in text
    assert err.startswith("execmem: arm64: design bad: seal of ")
    assert " bytes of RO_AFTER_INIT for module at 0x" in err
    assert "ZeroDivisionError: division by zero (bad.py:4)" in err
    code, text, _ = run(*words, "--json")
    document = json.loads(text)
    assert code == 1
    assert [one["design"] for one in document["runs"]] == ["vmalloc"]
    assert [one["design"] for one in document["errors"]] == ["bad"]
