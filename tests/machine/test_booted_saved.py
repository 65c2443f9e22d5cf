# SPDX-License-Identifier: GPL-2.0-or-later
"""Booted machines in files: they go on as if nothing had been, and hostile files do nothing."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from emulator.faults import BadCall, Fault
from kernels.booted import saved
from kernels.errors import BadSnapshot
from loader.errors import BadKernel
from machine.arguments import Out
from machine.booted.machine import BootedMachine
from machine.booted.saving import resume
from machine.face import Machine
from machine.machine import ModelledMachine
from tests.support import booted

KERNELS = booted.one_of_each()


@pytest.fixture(params=KERNELS, ids=[name for name, _, _ in KERNELS])
def machine(request: pytest.FixtureRequest) -> Iterator[BootedMachine]:
    """Return a kernel for each architecture, booted, as it was at first."""
    _, folder, _ = request.param
    found = booted.machine(folder, folder if (folder / "lib").is_dir() else None)
    with found.fork():
        yield found


def work(machine: BootedMachine) -> None:
    """Let registers, memory, time and log change: vector code, threads, an oops."""
    tfm = machine.call(machine.function("crypto_alloc_shash"), "sha256", 0, 0)
    machine.call(machine.function("crypto_shash_tfm_digest"), tfm, b"abc", 3, Out(32))
    machine.sleep(0.1)
    machine.call(machine.function("synchronize_rcu"))
    with pytest.raises(Fault):
        machine.call(machine.function("strlen"), 8)


def state(machine: BootedMachine) -> list[str]:
    """Return what two equal machines have in common."""
    board = machine.kernel.board
    pages = board.ram.differing(machine.kernel.standing.base)
    memory = hashlib.sha256(pages.tobytes())
    for page in pages.tolist():
        memory.update(board.ram.view[page * 4096 : (page + 1) * 4096])
    console = hashlib.sha256(board.wires.console).hexdigest()
    return [memory.hexdigest(), console, str(machine.time), str(len(machine.log))]


GO_ON = """
import sys
sys.path.insert(0, {root!r})
from tests.machine.test_booted_saved import Machine, state, work
machine = Machine.resume({path!r})
print(*state(machine))
work(machine)
print(*state(machine))
machine.save({path!r} + ".again")
print(*machine.modules)
"""


def test_it_goes_on_in_another_process(machine: BootedMachine, tmp_path: Path) -> None:
    """To the last byte of memory, from vector registers over the log to the time."""
    path = tmp_path / "one.snapshot"
    if machine.tree is not None:
        machine.load(max(machine.tree.files))
    work(machine)
    before = state(machine)
    machine.save(path)
    first = path.read_bytes()
    with machine.fork():  # memory has another file below it now
        machine.save(path)
        assert path.read_bytes() == first
        machine.sleep(0.01)
        machine.save(path)
        assert path.read_bytes() != first
    path.write_bytes(first)
    code = GO_ON.format(root=str(Path(__file__).parents[2]), path=str(path))
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, text=True, timeout=300
    )
    assert told.returncode == 0, told.stderr
    resumed, worked, modules = told.stdout.splitlines()
    assert resumed.split() == before
    assert modules.split() == list(machine.modules)
    work(machine)
    assert worked.split() == state(machine)
    machine.save(path)
    assert path.read_bytes() == Path(f"{path}.again").read_bytes()


def test_modules_and_snapshots_are_there_as_ever(machine: BootedMachine, tmp_path: Path) -> None:
    """Modules can be called and unloaded, snapshots nest, and what was open is open."""
    path = tmp_path / "one.snapshot"
    if machine.tree is None:
        pytest.skip("this kernel is here without modules")
    module = machine.load(max(machine.tree.files))
    at = machine.alloc(b"one")
    machine.open("/proc/uptime").close()
    machine.save(path)
    other = Machine.resume(path, root=machine.tree.folder.parents[2])
    assert isinstance(other, BootedMachine)
    assert other.modules.keys() == machine.modules.keys()
    again = other.modules[module.name]
    assert again.symbols == module.symbols
    assert again.sections == module.sections
    assert again.report == module.report
    assert again.regions == module.regions
    assert other.log == machine.log
    with other.fork():
        other.write(at, b"two")
        with other.fork():
            other.unload(again)
            assert other.read(at, 3) == b"two"
        assert other.modules[module.name] is again
    assert other.read(at, 3) == b"one"
    other.open("/proc/uptime").close()
    assert other.symbolize(next(iter(again.entries.values()))) is not None


def test_what_cannot_be_saved_says_so(machine: BootedMachine, tmp_path: Path) -> None:
    """In the middle of a call, after a panic, where nothing can be written."""
    path = tmp_path / "one.snapshot"

    def handler(_hit: object) -> None:
        machine.save(path)

    with machine.probe("kfree", handler), pytest.raises(BadCall, match="a call is under way"):
        machine.call(machine.function("kfree"), 0)
    with pytest.raises(BadSnapshot, match="No such file"):
        machine.save(tmp_path / "nowhere" / "one")
    kept = machine.snapshot()
    with pytest.raises(Fault):
        machine.call(machine.function("panic"), "enough")
    with pytest.raises(BadCall, match="restore a snapshot"):
        machine.save(path)
    assert not list(tmp_path.iterdir())
    machine.restore(kept)


def test_its_kernel_is_told_from_others(machine: BootedMachine, tmp_path: Path) -> None:
    """Another kernel, or boot, is refused; one that nobody kept is asked for by its name."""
    path = tmp_path / "one.snapshot"
    machine.save(path)
    head = saved.read(path).head
    name = machine.kernel.standing.facts["name"]
    for key, text in (
        ("image", re.escape(f"another kernel: of {name}")),
        ("memory", "is another here"),
    ):
        other = {**head, "kernel": {**head["kernel"], key: "0" * 64}}
        with pytest.raises(BadSnapshot, match=text):
            resume(machine, forged("x", other, b""))
    with pytest.raises(BadKernel, match=r"is not kept booted here .*: give its file"):
        Machine.resume(path, keep=False)


def forged(name: str, head: Any, parts: bytes) -> saved.Saved:
    """Return what a file of a head and parts holds, whose digest is right."""
    text = json.dumps(head).encode()
    rest = struct.pack("<I", len(text)) + text + parts
    start = b"execmem snapshot 1\n"
    return saved.parse(name, start + hashlib.sha256(rest).digest() + rest)


def test_damaged_files_are_refused(machine: BootedMachine, tmp_path: Path) -> None:
    """Whatever byte is another, wherever the file ends."""
    path = tmp_path / "one.snapshot"
    machine.save(path)
    data = path.read_bytes()
    chosen = random.Random(1)
    for _ in range(50):
        at = chosen.randrange(len(data))
        for damaged in (data[:at], data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]):
            with pytest.raises(BadSnapshot) as caught:
                saved.parse("x", damaged)
            assert "\n" not in str(caught.value)
    for what, text in (
        (b"", "is no snapshot"),
        (b"execmem snapshot 2\n" + data[19:], "has format 2"),
        (data + b"x", "its digest is another"),
    ):
        with pytest.raises(BadSnapshot, match=text):
            saved.parse("x", what)
    head = saved.read(path).head
    for key, text in (("execmem", "saved by execmem 0"), ("emulator", "saved by Unicorn 0")):
        path.write_bytes(data)
        with pytest.raises(BadSnapshot, match=text):
            resume(machine, forged("x", {**head, key: "0"}, b""))


WRONG: list[Any] = [
    *(None, True, -1, 1 << 70, 1.5, "x", [], {}, [[]], [None] * 3, {"x": 1}, (1 << 64) - 1, 0),
    *(1 << 200, "\\0", 0xFFFF_8000_0000_0000),
]


def changed(head: Any, chosen: random.Random) -> Any:
    """Return a document of which something, somewhere, is something else, or not there."""
    head = copy.deepcopy(head)
    here = head
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        if not keys:
            return head
        key = chosen.choice(keys)
        deeper = isinstance(here[key], dict | list) and here[key]
        if not deeper or chosen.random() < 0.1:
            if chosen.random() < 0.2:
                del here[key]
            else:
                here[key] = chosen.choice(WRONG)
            return head
        here = here[key]


def test_forged_files_are_refused_or_are_a_machine(machine: BootedMachine, tmp_path: Path) -> None:
    """What a forger writes is a line, or a guest that can do nothing to its host."""
    path = tmp_path / "one.snapshot"
    if machine.tree is not None:
        machine.load(max(machine.tree.files))
    machine.save(path)
    found = saved.read(path)
    parts = path.read_bytes()[-sum(size for _, size, _ in found.head["parts"].values()) :]
    chosen = random.Random(int(os.environ.get("EXECMEM_SEED", "7")))
    first = machine.snapshot()
    refused: list[str] = []
    taken = 0
    for _ in range(2000 if os.environ.get("EXECMEM_LONG") else 25):
        head = changed(found.head, chosen)
        try:
            resume(machine, forged("x", head, parts))
        except BadSnapshot as error:
            refused.append(str(error))
            continue
        taken += 1
        machine.seconds = 0.2
        with suppress(Fault, BadCall):
            machine.call(machine.function("kfree"), 0)
        with suppress(Fault, BadCall):
            machine.sleep(0.01)
        machine.restore(first)
    assert refused
    assert taken
    assert not [text for text in refused if "\n" in text]
    crc = machine.call(machine.function("crc32_le"), 0xFFFF_FFFF, b"abc", 3, returns="u32")
    assert crc ^ 0xFFFF_FFFF == zlib.crc32(b"abc")
    machine.seconds = None


def test_a_modelled_machine_says_why_it_cannot() -> None:
    """By name: what of it is no data."""
    machine = ModelledMachine("arm64")
    with pytest.raises(BadCall, match="timers, work, threads"):
        machine.save("/nowhere/one")
