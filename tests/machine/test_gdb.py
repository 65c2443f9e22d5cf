# SPDX-License-Identifier: GPL-2.0-or-later
"""Real gdb debugs modules on both kernels: symbols by themselves, frames, watching, going back.

Needs gdb-multiarch; what is booted, EXECMEM_KERNELS and EXECMEM_CORPUS.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from archs import Arch
from emulator.faults import Fault
from machine.control import Ended
from machine.face import Machine
from machine.gdb.listening import CannotListen
from machine.machine import ModelledMachine
from samples.modules import root
from tests.support import booted
from tests.support.gdb import drive, frames, values

LCM = ("mathuser", "mathuser_lcm", 21, 6)  # 42, by the other module's mathlib_gcd


def lcm(arch: Arch) -> tuple[Machine, Any]:
    """Return a machine and a call of a function of a module that calls another one's."""
    machine = Machine(arch, root=root(arch.name))
    name, function, *args = LCM
    module = machine.load(name)
    return machine, lambda: module.call(function, *args)


def test_modules_and_their_symbols_are_known(arch: Arch) -> None:
    """Both modules and the kernel are listed, a name breaks, and callers have their names."""
    machine, call = lcm(arch)
    results: list[int] = []
    said = drive(
        machine,
        lambda: results.append(call()),
        [
            *("info sharedlibrary", "break mathlib_gcd", "continue", "backtrace"),
            *("delete", "monitor modules", "monitor where", "detach"),
        ],
    )
    text = "\n".join(said)
    assert re.search(r"Yes \(\*\) +target:/mathlib\.ko", text)
    assert re.search(r"Yes \(\*\) +target:/mathuser\.ko", text)
    assert "mathuser_lcm () from target:/mathuser.ko" in text  # where it was met
    assert frames(said)[0][:2] == ["mathlib_gcd", "mathuser_lcm"]
    assert re.search(r"^mathlib +live", text, re.MULTILINE)
    assert re.search(r"mathuser_lcm\+0x0.*\[mathuser\], CPU 0", text)
    assert results == [42]


def test_time_goes_back(arch: Arch) -> None:
    """Steps back undo steps, a breakpoint stops on the way back, and so does the beginning."""
    machine, call = lcm(arch)
    results: list[int] = []
    said = drive(
        machine,
        lambda: results.append(call()),
        [
            *("print $pc", "stepi", "stepi", "stepi", "reverse-stepi", "reverse-stepi"),
            *("reverse-stepi", "print $pc", "break mathlib_gcd", "continue", "print $pc"),
            *("stepi", "stepi", "reverse-continue", "print $pc", "reverse-continue", "print $pc"),
            *("monitor snapshot", "continue", "monitor restore", "continue", "delete", "continue"),
        ],
    )
    text = "\n".join(said)
    before, back, inside, again, first = values(said)
    assert before == back == first
    assert inside == again != first
    assert "No more reverse-execution history." in text
    assert text.count("Breakpoint 1, ") == 4
    assert "exited normally" in text
    assert results == [42]


def test_a_variable_is_watched(arch: Arch) -> None:
    """A store to a module's variable stops behind it, on the way back before it."""
    machine, call = lcm(arch)
    calls = machine.modules["mathlib"].symbols["mathlib_calls"]
    results: list[int] = []
    said = drive(
        machine,
        lambda: results.append(call()),
        [
            *("print *(long *)&mathlib_calls", "watch *(long *)&mathlib_calls", "continue"),
            *("print *(long *)&mathlib_calls", "rwatch *(long *)&mathlib_calls"),
            *("reverse-continue", "print *(long *)&mathlib_calls", "delete", "continue"),
        ],
    )
    text = "\n".join(said)
    before, after, again = map(int, values(said))
    assert after == before + 1 == int.from_bytes(machine.read(calls, 8), "little")
    assert again == before
    assert text.count("Old value = ") == 2
    assert results == [42]


def test_registers_and_memory_are_changed(arch: Arch) -> None:
    """What gdb stores counts: an argument, a variable."""
    machine, call = lcm(arch)
    calling = arch.runs.calling
    argument = {"4": "r4", "a0": "a0"}.get(calling.arguments[0], calling.arguments[0])
    results: list[int] = []
    said = drive(
        machine,
        lambda: results.append(call()),
        [
            f"set var ${argument} = 35",
            "set var *(long *)&mathlib_calls = 100",
            "print *(long *)&mathlib_calls",
            "continue",
        ],
    )
    assert values(said) == ["100"]
    assert results == [210]  # of 35 and 6
    assert machine.read(machine.modules["mathlib"].symbols["mathlib_calls"], 1) == bytes((101,))


def test_gdb_calls_functions(arch: Arch) -> None:
    """Gdb's own calls give results; where it lets them return to the stack, it is refused that."""
    machine, call = lcm(arch)
    results: list[int] = []

    def work() -> None:
        with suppress(Ended):
            results.append(call())

    said = drive(
        machine,
        work,
        [
            "python code = 'print ((long (*)(long, long))mathlib_gcd)(12, 18)'",
            "python last = 'continue'",
            "python\ntry: gdb.execute(code)\nexcept gdb.error as e: print(e); last = 'kill'\nend",
            "python gdb.execute(last)",
        ],
    )
    if values(said) != ["6"]:
        assert any("Cannot insert breakpoint" in line for line in said)
    else:
        assert results == [42]


def test_an_init_is_met_at_its_first_instruction(arch: Arch) -> None:
    """A module is known before its init runs, and breaks in the kernel; what it logs is shown."""
    machine = Machine(arch, root=root(arch.name))
    said = drive(
        machine,
        lambda: machine.load("hello", who="gdb"),
        ["info symbol $pc", "break _printk", "continue", "backtrace 2", "delete", "continue"],
        init="hello",
    )
    text = "\n".join(said)
    assert re.search(
        r"^init_module in section \.init\.text of target:/coming/hello\.ko", text, re.MULTILINE
    )
    assert frames(said)[0][:2] == ["_printk", "init_module"]
    assert "hello: Hello, gdb!" in text
    assert machine.modules["hello"].state.value == "live"


def test_a_plt_entry_is_stepped_over(arch: Arch) -> None:
    """Three steps lead from an entry to the kernel function, and its end back to the module."""
    if arch.plt is None:
        pytest.skip(f"{arch.name} has no PLT")
    far = {
        "kaslr": 1,
        "design": "vmalloc",
        "stub_sections": True,
    }  # where the kernel is out of reach
    machine = Machine(arch, root=root(arch.name), **far)
    module = machine.load("hello", init=False)
    used = module.report.plt_slots
    if not used:
        pytest.skip(f"no call of {arch.name} is out of reach: its modules lie near the kernel")
    (plt,) = [each.address for each in module.sections.values() if each.name == ".init.plt"]
    machine = Machine(arch, root=root(arch.name), **far)  # which is the same once more
    said = drive(
        machine,
        lambda: machine.load("hello"),
        [
            *(f"break *{plt:#x}", "continue", "print/x $pc", "stepi", "stepi", "stepi"),
            *("backtrace 2", "finish", "info symbol $pc", "reverse-stepi", "detach"),
        ],
        init="hello",
    )
    text = "\n".join(said)
    assert values(said) == [f"{plt:#x}"]
    assert frames(said)[0][:2] == ["_printk", "init_module"]
    assert re.search(r"^init_module \+ \d+ in section \.init\.text", text, re.MULTILINE)
    assert machine.modules["hello"].state.value == "live"


def test_a_kernel_that_was_moved_has_its_symbols(arch: Arch) -> None:
    """With KASLR, too, the kernel's functions are where they are."""
    machine = Machine(arch, root=root(arch.name), kaslr=3)
    module = machine.load("hello", init=False)
    address = machine.kernel.symbols["_printk"]
    said = drive(
        machine, lambda: machine.call(module.symbols["init_module"]), ["print &_printk", "detach"]
    )
    assert int(values(said)[0].split()[-2], 16) == address


def test_a_fault_is_a_signal(arch: Arch) -> None:
    """What the guest may not do stops it there, before it comes out of the call."""
    machine, _ = lcm(arch)
    module = machine.modules["mathuser"]
    out: list[Fault] = []

    def work() -> None:
        with pytest.raises(Fault) as caught:
            machine.call(0x10)
        out.append(caught.value)

    said = drive(machine, work, ["continue", "print $pc", "detach"])
    assert "SIGSEGV" in "\n".join(said)
    assert int(values(said)[0].split()[-1], 16) == out[0].pc == 0x10
    assert module.call("mathuser_lcm", 21, 6) == 42


def test_kill_ends_the_call(arch: Arch) -> None:
    """`kill` comes out as `Ended`, and the machine goes on."""
    machine, call = lcm(arch)

    def work() -> None:
        with pytest.raises(Ended):
            call()

    drive(machine, work, ["stepi", "kill"])
    assert call() == 42


def test_a_debugger_that_is_lost_lets_the_guest_go(arch: Arch) -> None:
    """One that ends without a word, and a second one: the call returns, the second is refused."""
    machine, call = lcm(arch)
    with machine.gdb() as server:

        def client() -> None:
            with socket.create_connection(("127.0.0.1", server.port)) as one:
                one.sendall(b"$?#3f")
                one.recv(100)
                with socket.create_connection(("127.0.0.1", server.port)) as two:
                    two.settimeout(20)
                    try:
                        refused.append(two.recv(1) == b"")
                    except ConnectionResetError:
                        refused.append(True)
                one.sendall(b"$Z0,zz")  # and half a packet

        refused: list[bool] = []
        thread = threading.Thread(target=client)
        thread.start()
        assert call() == 42
        thread.join()
        assert not server.connected
        assert call() == 42  # nobody is waited for
    assert refused == [True]


def test_an_interrupt_stops_short_calls(arch: Arch) -> None:
    """Ctrl-C stops a guest that is called over and over, however short its calls are."""
    machine, _ = lcm(arch)
    module = machine.modules["mathlib"]
    loop = module.symbols["mathlib_gcd"]
    with machine.gdb() as server:
        done: list[bytes] = []

        def client() -> None:
            with socket.create_connection(("127.0.0.1", server.port)) as one:
                one.settimeout(30)
                one.sendall(b"$Qx#c9$?#3f")
                one.recv(100)
                one.sendall(b"+$c#63")
                one.sendall(b"\x03")
                data = b""
                while b"$T02" not in data:
                    data += one.recv(1000)
                done.append(data)
                one.sendall(b"+$k#6b")

        thread = threading.Thread(target=client)
        thread.start()

        def run() -> None:
            for _ in range(20_000):
                machine.call(loop, (1 << 63) - 25, (1 << 62) - 57)

        with pytest.raises(Ended):
            run()
        thread.join()
    assert done


def test_only_this_host_listens(tmp_path: Path) -> None:
    """A port is one of 127.0.0.1, a socket the user's own, and what cannot be is said in a line."""
    machine = ModelledMachine("x86_64")
    with machine.gdb() as server:
        listening = subprocess.run(
            ["/bin/cat", "/proc/net/tcp"], capture_output=True, text=True, check=True
        ).stdout
        (line,) = [
            line for line in listening.splitlines() if f":{server.port:04X} 00000000" in line
        ]
        assert line.split()[1].startswith("0100007F:")
        with pytest.raises(CannotListen, match="in use"):
            machine.gdb(server.port)
    path = tmp_path / "socket"
    with machine.gdb(path=path) as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert server.address == str(path)
        with pytest.raises(CannotListen, match=r"in use|already"):
            machine.gdb(path=path)
    assert not path.exists()
    path.write_text("mine")
    with pytest.raises(CannotListen, match="is there already"):
        machine.gdb(path=path)
    assert path.read_text() == "mine"
    for host in ("nowhere", "203.0.113.1"):
        with pytest.raises(CannotListen, match=host):
            machine.gdb(host=host)
    with pytest.raises(CannotListen, match="65535"):
        machine.gdb(70000)


# Distribution modules, on both kernels -----------------------------------------------------------------

INIT = [
    *("info sharedlibrary", "break misc_register", "continue", "backtrace"),
    *("watch *(int *)&rfkill_default_state", "delete", "finish", "info symbol $pc"),
    *("reverse-stepi", "info symbol $pc", "stepi", "info symbol $pc", "detach"),
]
INITS = ("rfkill_init", "init_module")  # one is an alias of the other
CHOSEN = ("6.12-amd64", "6.12-arm64", "6.12-riscv64", "7.2-amd64")  # with EXECMEM_LONG all
KERNELS = [
    each for each in booted.releases() if each[0] in CHOSEN or os.environ.get("EXECMEM_LONG")
]


def check_init(said: list[str], outer: list[str]) -> None:
    """Check that an init was debugged: who called whom, and that steps back lead back."""
    text = "\n".join(said)
    assert re.search(r"target:/coming/rfkill\.ko", text)
    assert frames(said)[0][: len(outer) + 2] == ["misc_register", frames(said)[0][1], *outer]
    assert frames(said)[0][1] in INITS
    behind, back, again = re.findall(r"^(\S+) .*in section", text, re.MULTILINE)
    assert behind == again in INITS
    assert back == "misc_register"


def test_an_init_on_the_modelled_kernel(arch: Arch, corpus: Path) -> None:
    """A distribution's module calls the kernel, and gdb finds all frames, as the kernel would."""
    machine = Machine(arch, root=corpus)
    said = drive(machine, lambda: machine.load("rfkill"), [*INIT[:4], "detach"], init="rfkill")
    outer = [] if arch.debugs.unwind is None else ["called_from_outside"]
    assert frames(said)[0][: len(outer) + 2] == ["misc_register", "rfkill_init", *outer]
    assert machine.modules["rfkill"].state.value == "live"


@pytest.mark.parametrize(("name", "folder", "arch"), KERNELS, ids=[name for name, _, _ in KERNELS])
def test_an_init_in_its_own_kernel(name: str, folder: Path, arch: Arch) -> None:
    """The same in a booted kernel: through its loader to the system call, and tasks as threads."""
    assert arch.name
    with booted.fresh(folder, booted.tree(folder)) as machine:
        said = drive(
            machine,
            lambda: machine.load("rfkill"),
            [*INIT[:-1], "info threads", "thread find kthreadd", "detach"],
            init="rfkill",
        )
        check_init(said, ["do_one_initcall", "do_init_module"])
        assert frames(said)[0][-1] == "called_from_outside", name
        text = "\n".join(said)
        if "init_task" in machine.kernel.symbols:
            assert re.search(r'"kthreadd" \(pid 2, sleeps\) +0x[0-9a-f]+ in __s', text)
        assert machine.modules["rfkill"].state.value == "live"
