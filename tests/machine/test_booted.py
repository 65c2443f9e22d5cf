# SPDX-License-Identifier: GPL-2.0-or-later
"""Real kernels, booted: what they compute, say and take, beside what others know of that."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from archs import Arch
from emulator.faults import BadCall, Fault, FaultKind
from execmem.cli import main
from loader.errors import KernelRefused
from loader.files import module_name
from machine.arguments import Out
from machine.booted.files import FileError
from machine.booted.machine import BootedMachine
from tests.support import booted

KERNELS = booted.releases()
SAMPLE = 12  # modules that are loaded where EXECMEM_LONG does not ask for all


@pytest.fixture(params=KERNELS, ids=[name for name, _, _ in KERNELS])
def machine(request: pytest.FixtureRequest) -> Iterator[BootedMachine]:
    """Return each kernel that is at hand, booted, as it was at first."""
    _, folder, _ = request.param
    found = booted.machine(folder)
    with found.fork():
        yield found


@pytest.fixture(params=KERNELS, ids=[name for name, _, _ in KERNELS])
def kernel(request: pytest.FixtureRequest) -> tuple[str, Path, Arch]:
    """Return name, folder and architecture of each kernel that is at hand."""
    found: tuple[str, Path, Arch] = request.param
    return found


def test_a_function_computes(machine: BootedMachine) -> None:
    """A function computes."""
    data = bytes(range(256)) * 40
    found = machine.call(machine.function("crc32_le"), 0xFFFF_FFFF, data, len(data))
    assert found ^ 0xFFFF_FFFF == zlib.crc32(data)


def test_crypto_is_the_kernels_own(machine: BootedMachine) -> None:
    """Crypto is the kernel's own."""
    data = b"abc" * 1000
    tfm = machine.call(machine.function("crypto_alloc_shash"), "sha256", 0, 0)
    assert tfm < (1 << 64) - 4096
    digest = Out(32)
    machine.call(machine.function("crypto_shash_tfm_digest"), tfm, data, len(data), digest)
    assert bytes(digest) == hashlib.sha256(data).digest()


def test_the_kernel_formats_as_c_does(machine: BootedMachine) -> None:
    """The kernel formats as C does."""
    text = Out(64)
    place = machine.function("kfree")
    length = machine.call(
        machine.function("snprintf"), text, 64, "%s|%d|%#x|%ps", "word", (1 << 64) - 7, 255, place
    )
    assert bytes(text)[:length] == b"word|-7|0xff|kfree"


def test_it_logs(machine: BootedMachine) -> None:
    """It logs, at once: no thread prints what a call has logged later than that (PREEMPT_RT, nbcon)."""
    name = "_printk" if "_printk" in machine.kernel.symbols else "printk"
    machine.call(machine.function(name), "\x013hello from %s\n", "Python")
    assert (machine.log[-1].level, machine.log[-1].text) == (3, "hello from Python")
    assert any("Linux version" in line.text for line in machine.log[:8])
    if (ready := machine.kernel.symbols.get("printk_kthreads_ready")) is not None:
        assert machine.read(ready, 1) == b"\0"  # kernel/printk/printk.c
    began = [each.text for each in machine.log if each.text.startswith("Run /")]
    machine.sleep(0.3)
    assert (len(began), machine.log[-1].text) == (1, "hello from Python")


def test_what_a_kernel_times_it_finds_as_others_do(machine: BootedMachine) -> None:
    """What a kernel times it finds as others do: the emulated CPU loads unaligned words, too."""
    told = [line.text for line in machine.log if "unaligned" in line.text]
    assert bool(told) is bool(machine.arch.boots.takes)
    assert all("fast" in text for text in told)


@pytest.mark.parametrize("milliseconds", [1, 100])
def test_sleeping_takes_the_guest_its_time(machine: BootedMachine, milliseconds: int) -> None:
    """Sleeping takes the guest its time."""
    before = machine.time
    machine.call(machine.function("msleep"), milliseconds)
    passed = (machine.time - before) * 1000
    jiffy = 1000 / 250
    assert milliseconds - jiffy <= passed <= milliseconds + 3 * jiffy


def test_what_waits_for_others_comes_back(machine: BootedMachine) -> None:
    """What waits for others comes back."""
    for name in ("synchronize_rcu", "lru_add_drain_all", "rcu_barrier"):
        machine.call(machine.function(name))


def test_a_null_pointer_is_the_kernels_own_oops_and_the_machine_goes_on(
    machine: BootedMachine,
) -> None:
    """A null pointer is the kernel's own oops and the machine goes on."""
    with pytest.raises(Fault) as caught:
        machine.call(machine.function("strlen"), 8)
    assert caught.value.kind is FaultKind.READ
    assert caught.value.address == 8
    assert "strlen" in caught.value.where
    assert any("[#1]" in line.text for line in machine.log)
    assert machine.syscall("getpid") == 1


def test_a_panic_ends_everything_until_one_goes_back(machine: BootedMachine) -> None:
    """A panic ends everything until one goes back."""
    kept = machine.snapshot()
    with pytest.raises(Fault, match="not syncing: all is lost") as caught:
        machine.call(machine.function("panic"), "all is lost")
    assert caught.value.kind is FaultKind.PANIC
    with pytest.raises(Fault, match="restore"):
        machine.syscall("getpid")
    machine.restore(kept)
    assert machine.syscall("getpid") == 1


def test_system_calls_are_made_as_a_process(machine: BootedMachine) -> None:
    """System calls are made as a process."""
    assert machine.syscall("getpid") == 1
    assert machine.syscall("close", 77) == -9  # EBADF
    assert machine.syscall("openat", -100, "/nowhere", 0, 0) == -2  # ENOENT
    names = Out(390)
    assert machine.syscall("newuname", names) == 0
    assert bytes(names).split(b"\0")[0] == b"Linux"
    assert machine.kernel.release.encode() in bytes(names)


def test_work_is_done_in_an_interrupt_that_the_cpu_sends_itself(machine: BootedMachine) -> None:
    """As threads of RCU are woken that somebody waits for: who does comes back."""
    names = ("synchronize_rcu_tasks", "synchronize_rcu_tasks_rude", "synchronize_rcu")
    known = [name for name in names if name in machine.kernel.symbols]
    assert "synchronize_rcu" in known
    for name in known:
        machine.call(machine.function(name), seconds=60)


SAVED: dict[str, tuple[tuple[str, ...], ...]] = {
    "x86_64": (("di",), ("si",), ("dx",), ("r10",), ("r8",), ("r9",)),
    "arm64": (("regs", "orig_x0"),),
    "riscv64": (("orig_a0", "a0"), ("a1",), ("a2",), ("a3",), ("a4",), ("a5",)),
}


def test_arguments_of_system_calls_are_where_the_kernel_saves_them(machine: BootedMachine) -> None:
    """As its own types have `struct pt_regs`; arm64 since 7.3 looks at the second place."""
    types, boot = machine.kernel.standing.types, machine.arch.boots
    assert types is not None
    registers = types.find("pt_regs")
    assert registers is not None
    for names, places in zip(SAVED[machine.arch.name], boot.system_call_arguments, strict=False):
        found = [types.place(registers.number, name) for name in names]
        assert [each.bytes for each in found if each is not None] == list(places)
    assert types.size_of(registers.number) <= boot.registers_size


def test_a_bad_user_pointer_is_refused(machine: BootedMachine) -> None:
    """A bad user pointer is refused."""
    bad = 0x1234_5678_9000
    assert machine.syscall("init_module", bad, 64, bad) == -14  # EFAULT
    assert machine.syscall("newuname", bad) == -14


def test_what_is_no_module_is_refused_with_the_kernels_errno(machine: BootedMachine) -> None:
    """What is no module is refused with the kernel's errno."""
    with machine.user(b"\x7fELF" + bytes(100)) as address:
        assert machine.syscall("init_module", address, 104, address + 100) == -8  # ENOEXEC


def test_unknown_names_are_refused(machine: BootedMachine) -> None:
    """Unknown names are refused."""
    with pytest.raises(BadCall, match="no such symbol"):
        machine.function("nobody_has_this")
    with pytest.raises(BadCall, match="nobody_has_this"):
        machine.syscall("nobody_has_this")
    with pytest.raises(BadCall, match="nothing is mapped"):
        machine.read(0x10, 8)


def test_going_back_a_thousand_times_leaves_everything_as_it_was(machine: BootedMachine) -> None:
    """Going back a thousand times leaves everything as it was."""
    kept = machine.snapshot()
    ram = hashlib.sha256(machine.kernel.board.ram.view).digest()
    context, time = machine.kernel.board.context(), machine.time
    crc = machine.function("crc32_le")
    for number in range(1000):
        at = machine.alloc(bytes((number & 255,)) * 300)
        machine.call(crc, 0, at, 300)
        machine.restore(kept)
    assert hashlib.sha256(machine.kernel.board.ram.view).digest() == ram
    assert machine.kernel.board.context() == context
    assert machine.time == time


def test_snapshots_nest(machine: BootedMachine) -> None:
    """Snapshots nest."""
    at = machine.alloc(b"one")
    outer = machine.snapshot()
    machine.write(at, b"two")
    inner = machine.snapshot()
    machine.write(at, b"six")
    machine.restore(inner)
    assert machine.read(at, 3) == b"two"
    machine.restore(outer)
    assert machine.read(at, 3) == b"one"
    machine.restore(inner)
    assert machine.read(at, 3) == b"two"


@pytest.mark.parametrize("folder", [pytest.param(f, id=name) for name, f, _ in booted.some()])
def test_two_boots_are_equal(folder: Path) -> None:
    """Two boots are equal."""
    first = booted.machine(folder)
    with first.fork():
        second = BootedMachine(kernel=folder, keep=False)
        for machine in (first, second):
            machine.call(machine.function("msleep"), 20)
        boards = [machine.kernel.board for machine in (first, second)]
        rams, consoles = ([b.ram.view for b in boards], [b.wires.console for b in boards])
        assert consoles[0] == consoles[1]
        assert rams[0] == rams[1]


def modules_of(folder: Path) -> list[Path]:
    """Return the files of the modules of a kernel."""
    return sorted(folder.rglob("*.ko*"))


def test_its_loader_takes_its_modules(kernel: tuple[str, Path, Arch]) -> None:
    """Its loader takes its modules."""
    name, folder, _ = kernel
    files = modules_of(folder)
    if not files:
        pytest.skip(f"{name} is here without modules")
    if not os.environ.get("EXECMEM_LONG"):
        files = files[:: max(1, len(files) // SAMPLE)]  # what they need comes with them
    machine = booted.machine(folder, folder)
    with machine.fork():
        refused = {}
        for file in files:
            if module_name(file) not in machine.modules:  # as something that another needs
                try:
                    machine.load(file)
                except KernelRefused as error:
                    refused[file.name] = error
        assert not {n: e for n, e in refused.items() if e.errno != 19}  # ENODEV: no such device


def test_files_are_those_of_a_process(machine: BootedMachine) -> None:
    """Files are those of a process: the kernel's own /proc, and devices by their nodes."""
    with machine.open("/proc/version", os.O_RDONLY) as version:
        assert machine.kernel.release.encode() in version.read_all()
        assert version.read(8) == b""
        assert version.seek(0) == 0
        assert version.read(13) == b"Linux version"
    with machine.device("null") as null:
        assert null.write(b"abc") == 3
        assert null.read(4) == b""
        with pytest.raises(FileError, match=r"/dev/null: ioctl 0x1234: -25 \(ENOTTY\)"):
            null.ioctl(0x1234)
    with machine.device("zero", flags=os.O_RDONLY) as zero:
        assert zero.read(5000) == bytes(5000)
        with pytest.raises(FileError, match=r"write: -9 \(EBADF\)"):
            zero.write(b"x")
    with pytest.raises(FileError, match=r"/dev/nobody: open: -2 \(ENOENT\)"):
        machine.device("nobody")


def test_memory_of_a_file_is_mapped(machine: BootedMachine) -> None:
    """Memory of a file is mapped into the process, which the kernel reads it from."""
    with machine.device("zero") as zero, machine.open("/written", os.O_RDWR | os.O_CREAT) as file:
        with zero.mmap(0x4000) as address:
            assert machine.syscall("write", file._fd, address, 0x1000) == 0x1000
        file.seek(0)
        assert file.read_all() == bytes(0x1000)


def test_what_the_kernel_asks_for_comes_from_the_tree(kernel: tuple[str, Path, Arch]) -> None:
    """What the kernel asks for comes from the tree: a cipher that only a module has."""
    _, folder, _ = kernel
    if not list(folder.rglob("md4.ko*")):
        pytest.skip("no md4 here")
    machine = booted.machine(folder, folder)
    with machine.fork():
        tfm = machine.call(machine.function("crypto_alloc_shash"), "md4", 0, 0)
        assert "md4" in machine.modules
        digest = Out(16)
        machine.call(machine.function("crypto_shash_tfm_digest"), tfm, b"abc", 3, digest)
        assert bytes(digest).hex() == "a448017aaf21d8525fc10ae87aa6729d"  # RFC 1320, A.5


@pytest.mark.parametrize(
    "kernel", booted.some(), indirect=True, ids=[n for n, _, _ in booted.some()]
)
@pytest.mark.parametrize("waits", [True, False])
def test_who_does_not_wait_for_modprobe_has_it_when_the_load_is_over(
    kernel: tuple[str, Path, Arch], waits: bool
) -> None:
    """The module that is asked for may need the one that asks: beside it, not in the middle of it."""
    _, folder, _ = kernel
    root = booted.tree(folder)
    if root is None or not all(list(root.rglob(f"{name}.ko*")) for name in ("md4", "crc7")):
        pytest.skip("no md4 or crc7 here")
    machine = booted.machine(folder, root)
    inside: list[bool] = []

    def ask() -> None:
        if not inside:
            inside.append(False)
            machine.call(machine.function("__request_module"), waits, "md4")
            inside[0] = "md4" in machine.modules

    with machine.fork():
        board, place = machine.kernel.guest.board, machine.function("do_init_module")
        asking = board.break_at(place, ask)
        try:
            machine.load("crc7")
        finally:
            board.no_break_at(place, asking)
        assert inside == [waits]
        assert {"crc7", "md4"} <= set(machine.modules)


def test_the_command_line_boots(
    kernel: tuple[str, Path, Arch], capfd: pytest.CaptureFixture[str]
) -> None:
    """The command line boots: run, load, and a sweep of a few modules."""
    _, folder, arch = kernel
    files = [f for f in modules_of(folder) if module_name(f) in ("lz4", "xxhash_generic", "md4")]
    if not files:
        pytest.skip("no module here")
    booted.machine(folder)

    def run(*words: object) -> tuple[int, str, str]:
        try:
            main([str(word) for word in words])
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0
        return code, *capfd.readouterr()

    code, out, err = run("load", files[0], "--kernel", folder, "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)["modules"][-1]
    assert document["arch"] == arch.name
    assert {"TEXT", "DATA"} <= {region["type"] for region in document["regions"]}
    code, out, err = run("sweep", *files, "--init", "--kernel", folder, "--jobs", 1, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, {row["outcome"] for row in rows[:-1]}) == (0, {"init-ok"}), out
    # Behind the fence, from the cache that it may read.
    words = [sys.executable, "-m", "execmem", "load", files[0], "--kernel", folder, "--sandbox"]
    done = subprocess.run([*words, "--json"], check=True, capture_output=True)
    assert json.loads(done.stdout)["modules"][-1] == document
    code, out, err = run("run", files[0], "--kernel", folder, "--design", "vmalloc")
    assert code == 2
    assert "--design: a booted kernel decides that itself" in err
    code, out, err = run("kernel", "--cache", "--json")
    assert folder.name.partition("-")[0] in out
