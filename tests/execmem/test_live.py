# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels that are booted as recordings: what they make of modules beside what we make."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import attrs
import pytest

from allocator.types import MemType
from archs.boot_x86_64 import NUMBERS
from archs.environment import Boot
from execmem.cli import main
from execmem.diffing.diff import compare_runs
from execmem.diffing.live import Recorder, record
from execmem.diffing.placement import place_runs
from kernels.booted.modules import Loading
from kernels.errors import BootFailed
from loader.btf_records import Kind
from loader.depends import ModuleTree, tree_of
from loader.elf import parse
from loader.files import ModuleFile
from loader.recording import RecordedBoot
from machine.booted.account import account
from machine.booted.machine import BootedMachine
from tests.support import booted

# With EXECMEM_LONG every module of every tree is compared; else some small ones, and what is the
# same in all kernels is looked at in one of each architecture.
LONG = "EXECMEM_LONG" in os.environ
SAMPLE = 2
KERNELS = booted.releases()
NEWEST = {arch.name: (name, folder, arch) for name, folder, arch in KERNELS}


def folders() -> list[Path]:
    """Return where modules of kernels may be."""
    named = os.environ.get("EXECMEM_CORPUS", "").split(os.pathsep)
    return [*(folder for _, folder, _ in KERNELS), *map(Path, filter(None, named))]


def trees(machine: BootedMachine) -> ModuleTree:
    """Return the tree of a machine's modules, or skip."""
    tree = tree_of(machine.kernel.release, folders())
    if tree is None:
        pytest.skip(f"no modules of Linux {machine.kernel.release} at hand")
    return tree


@contextmanager
def opened(folder: Path) -> Iterator[BootedMachine]:
    """Give a kernel, booted, with its modules; it is as it was at first afterwards."""
    found = booted.machine(folder)
    modules = found.kernel.modules
    with found.fork():
        found.tree = trees(found)
        yield found
    found.tree = None
    modules.on_relocated = modules.before_init = None


@pytest.fixture(params=KERNELS, ids=[name for name, _, _ in KERNELS])
def machine(request: pytest.FixtureRequest) -> Iterator[BootedMachine]:
    """Return each kernel that is at hand."""
    with opened(request.param[1]) as found:
        yield found


some = pytest.mark.parametrize(
    "machine",
    KERNELS if LONG else NEWEST.values(),
    ids=[name for name, *_ in (KERNELS if LONG else NEWEST.values())],
    indirect=True,
)


@cache
def told(folder: Path) -> Boot:
    """Return what a kernel says of itself."""
    return account(booted.machine(folder))


def recorder_of(machine: BootedMachine) -> Recorder:
    """Return who records a machine that is booted for all tests."""
    folder = next(f for _, f, _ in KERNELS if booted.machine(f) is machine)
    return Recorder(machine, told(folder))


def chosen(tree: ModuleTree) -> list[str]:
    """Return the modules to compare: all, or some of the smaller half."""
    names = sorted(tree.files, key=lambda name: (tree.folder / tree.files[name]).stat().st_size)
    return names if LONG else names[: len(names) // 2 : max(1, len(names) // 2 // SAMPLE)]


def test_every_byte_and_place_is_predicted(machine: BootedMachine) -> None:
    """Relocation, text and read-only data are the kernel's, as are places; data is explained."""
    boot = record(recorder_of(machine), chosen(machine.tree or trees(machine)))
    (run,) = compare_runs([boot])
    assert len(run.compared) >= SAMPLE
    assert (run.total("relocated"), run.differing("text"), run.differing("rodata")) == (0, 0, 0)
    assert run.equal
    assert run.unexplained == 0, run.counts("differing")
    assert {m for (_, m), n in run.counts("differing").items() if n} <= {"running_kernel"}
    (placed,) = place_runs([boot])
    assert placed.regions == placed.equal > 2 * SAMPLE
    assert not [r for r in boot.refusals if r.errno not in {6, 19}], boot.refusals  # no such device


@some
def test_a_byte_of_the_kernel_that_is_another_is_told(machine: BootedMachine) -> None:
    """What is compared are the kernel's bytes: one of them changed in its memory is a difference."""
    recorder = recorder_of(machine)
    kept = machine.kernel.modules.before_init
    places = []

    def changed(load: Loading) -> None:
        places.append(at := load.regions[MemType.TEXT].address)
        machine.write(at, bytes([machine.read(at, 1)[0] ^ 0x40]))
        assert kept is not None
        kept(load)

    machine.kernel.modules.before_init = changed
    boot = record(recorder, [smallest(machine)])
    (run,) = compare_runs([boot], ranges=True)
    (module,) = run.compared
    assert run.total("relocated") == 0
    (found,), (place,) = module.ranges, places
    assert found.address <= place < found.address + len(found.ours)


def smallest(machine: BootedMachine) -> str:
    """Return a module that needs no other."""
    tree = machine.tree
    assert tree is not None
    alone = [name for name in tree.files if not tree.needs[name]]
    sized = {name: (tree.folder / tree.files[name]).stat().st_size for name in alone}
    return min(sized, key=lambda name: sized[name])


def unsigned(image: bytes) -> bytes:
    """Return a module without the signature behind it (struct module_signature)."""
    mark = b"~Module signature appended~\n"
    if not image.endswith(mark):
        return image
    end = len(image) - len(mark) - 12
    return image[: end - int.from_bytes(image[end + 8 : end + 12], "big")]


@some
def test_what_the_kernel_refuses_is_listed_with_its_words(machine: BootedMachine) -> None:
    """A module for another kernel is refused with the kernel's errno and line, and not compared."""
    tree = machine.tree
    assert tree is not None
    name = smallest(machine)
    image = unsigned(ModuleFile.read(tree.folder / tree.files[name]).image())
    magic = parse(image).modinfo["vermagic"].encode()
    recorder = recorder_of(machine)
    recorder.load(ModuleFile(f"{name}.ko", image.replace(magic, magic.swapcase())))
    (refusal,) = recorder.boot.refusals
    assert (refusal.module, refusal.at, refusal.errno, refusal.error) == (
        name,
        "load",
        8,
        "ENOEXEC",
    )
    assert "version magic" in refusal.said
    assert not recorder.boot.recordings


def starts_at(machine: BootedMachine, recorder: Recorder, address: int) -> None:
    """Let the next module's init be what is at an address."""
    types = machine.kernel.standing.types
    assert types is not None
    outer = types.find("module", Kind.STRUCT)
    assert outer is not None
    place = types.place(outer.number, "init")
    assert place is not None
    modules, kept = machine.kernel.modules, machine.kernel.modules.before_init
    offset = place.bytes

    def changed(load: Loading) -> None:
        assert kept is not None
        kept(load)
        machine.write(load.module + offset, address.to_bytes(8, "little"))
        modules.before_init = kept

    modules.before_init = changed


@some
@pytest.mark.parametrize("end", ["an oops", "a panic"])
def test_an_init_that_dies_does_not_end_the_comparison(machine: BootedMachine, end: str) -> None:
    """A module whose init dies is compared as others are; the next is loaded into a whole kernel."""
    tree = machine.tree
    assert tree is not None
    first = smallest(machine)
    recorder = recorder_of(machine)
    starts_at(machine, recorder, 8 if end == "an oops" else machine.function("panic"))
    file = ModuleFile.read(tree.folder / tree.files[first])
    recorder.load(file)
    (refusal,) = recorder.boot.refusals
    assert (refusal.module, refusal.at, refusal.errno) == (first, "init", 0)
    assert any("panic" in line or "Oops" in line or "[#1]" in line for line in refusal.log)
    assert first not in machine.modules
    recorder.load(file)
    assert first in machine.modules
    boot = recorder.boot
    (run,) = compare_runs([boot])
    assert run.equal
    assert [module.name for module in run.compared] == [first]
    assert machine.syscall("getpid") == 1


@some
def test_keys_and_calls_are_what_they_say_when_a_module_comes(machine: BootedMachine) -> None:
    """A key that is switched on before its module comes is on in what is recorded, and in code."""
    tree = machine.tree
    assert tree is not None
    found = next((name for name in ("nf_tables", "cfg80211", "ext4") if name in tree.files), None)
    if found is None:
        pytest.skip("no module that goes by keys of the kernel")
    recorder = recorder_of(machine)
    key, on = _off(machine, recorder, found)
    machine.call(machine.function("static_key_slow_inc"), key)
    recorder = recorder_of(machine)
    boot = record(recorder, [found])
    recording = next(r for r in boot.recordings if r.name == found)
    assert recording.static_keys is not None
    assert recording.static_keys[on] is True
    (run,) = compare_runs([boot])
    assert run.equal
    told = next(r for r in _without_keys(boot).recordings if r.name == found)
    (other,) = compare_runs([_without_keys(boot)], modules=[found])
    assert told.static_keys == {}
    assert other.differing("text") > 0


def _off(machine: BootedMachine, recorder: Recorder, name: str) -> tuple[int, str]:
    """Return address and name of a key of the kernel that a module goes by, and that is off."""
    with machine.fork():
        boot = record(recorder, [name])
    recording = next(r for r in boot.recordings if r.name == name)
    for key, on in (recording.static_keys or {}).items():
        at = recording.symbols.get(key, 0)
        if not on and boot.told.symbols.get(key) == at:
            return at, key
    pytest.skip(f"{name} goes by no key of the kernel that is off")


def _without_keys(boot: RecordedBoot) -> RecordedBoot:
    recordings = tuple(attrs.evolve(r, static_keys={}) for r in boot.recordings)
    return attrs.evolve(boot, recordings=recordings)


def test_a_kernels_account_of_itself(machine: BootedMachine) -> None:
    """Numbers of features in the kernel's memory are those that /proc/cpuinfo names."""
    folder = next(f for _, f, _ in KERNELS if booted.machine(f) is machine)
    boot = told(folder)
    assert boot.command_line
    assert boot.possible_cpus == 1
    assert boot.capabilities
    assert {"meltdown", "spectre_v2"} <= set(boot.vulnerabilities)
    flags = set(boot.cpu.get("flags", "").split())
    if flags:
        numbers = NUMBERS.of(boot.version)
        named = {numbers[flag] for flag in flags if flag in numbers}
        assert len(named) > 50
        assert named <= boot.capabilities
        assert boot.return_thunk.endswith("__x86_return_thunk")
    # The machine is as it was: nothing is mounted.
    assert machine.syscall("openat", -100, "/proc/cmdline", 0, 0) == -2


@pytest.mark.skipif(not LONG, reason="EXECMEM_LONG is not set: each is a boot")
@pytest.mark.parametrize(
    "words", ["mitigations=off", "spectre_v2=retpoline,lfence", "spectre_v2=retpoline preempt=full"]
)
@pytest.mark.parametrize("name", [n for n, _, a in KERNELS if a.name == "x86_64"])
def test_other_command_lines(name: str, words: str) -> None:
    """What a kernel decides by its command line is read of it: every byte is predicted then, too."""
    folder = next(folder for each, folder, _ in KERNELS if each == name)
    try:
        machine = BootedMachine(kernel=folder, command_line=words)
    except BootFailed as failed:
        # 7.2 with LFENCE: where a jump by R11 has 5 bytes, for LFENCE and the jump, which take 6.
        if b"at apply_retpolines" not in failed.printed:
            raise
        pytest.skip("apply_retpolines() itself warns, and the kernel dies")
    machine.tree = trees(machine)
    boot = record(Recorder(machine), chosen(machine.tree))
    assert words in boot.told.command_line
    (run,) = compare_runs([boot])
    assert (run.equal, run.unexplained) == (True, 0), run.counts("differing")


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """`diff --kernel` prints what `diff --oracle` does, and the places, as JSON."""
    for _, folder, _ in KERNELS:
        found = booted.machine(folder)
        tree = tree_of(found.kernel.release, folders())
        if tree is None:
            continue
        found.tree = tree
        name = smallest(found)
        found.tree = None
        words = ["--kernel", folder, "--root", tree.folder, "--placement", "--json", "--jobs", 1]
        with pytest.raises(SystemExit) as done:
            main(["diff", name, *map(str, words)])
        assert not done.value.code
        document = json.loads(capsys.readouterr().out)
        (run,), (placed,) = document["runs"], document["placement"]
        wanted = {"kernel": found.kernel.release, "run": "booted", "modules": 1, "unexplained": 0}
        wanted |= {f"{kind}_bytes_differing": 0 for kind in ("reloc", "text", "rodata")}
        assert {key: run[key] for key in wanted} == wanted
        assert placed["regions"] == placed["regions_equal"] > 0
        return
    pytest.skip("no kernel with modules at hand")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--oracle DIR or --kernel PATH"),
        (("--oracle", ".", "--cpu", "a53"), "--cpu: nothing is booted here"),
        (("--kernel", "x", "--run", "base"), "--run: --kernel boots one kernel"),
        (("--kernel", "x", "--oracle", "."), "--oracle or --kernel"),
    ],
)
def test_what_does_not_go_together(
    words: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A comparison is with recordings, or with a kernel that is booted."""
    monkeypatch.delenv("EXECMEM_ORACLE", raising=False)
    with pytest.raises(SystemExit) as done:
        main(["diff", *words])
    assert done.value.code == 2
    assert said in capsys.readouterr().err


def test_modules_of_another_kernel_are_not_looked_at(tmp_path: Path) -> None:
    """A folder that holds modules of another release is no tree of this one."""
    (tmp_path / "lib/modules/6.1.0").mkdir(parents=True)
    (tmp_path / "lib/modules/6.1.0/modules.dep").write_text("a.ko:\n", "ascii")
    assert tree_of("6.12.0", [tmp_path]) is None
    found = tree_of("6.1.0", [tmp_path])
    assert found is not None
    assert list(found.files) == ["a"]
    inner = tree_of("6.1.0", [tmp_path.parent])
    assert inner is not None
    assert inner.folder == found.folder
