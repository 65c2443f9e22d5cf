# SPDX-License-Identifier: GPL-2.0-or-later
"""Ctrl-C while a guest runs is never lost."""

import signal
import sys
import threading
import time

import pytest
import unicorn
from unicorn import unicorn_const as uc_const

from emulator import interrupts, process

CODE = 0x1000
# mov $100000000, %ecx; 1: dec %ecx; jnz 1b; nop; ret
LOOP = bytes.fromhex("b900e1f505 ffc9 75fc 90 c3")
AFTER = CODE + 9


@pytest.fixture
def uc():
    """Return an emulator with a loop of some tenths of a second and a place behind it."""
    uc = unicorn.Uc(uc_const.UC_ARCH_X86, uc_const.UC_MODE_64)
    uc.mem_map(CODE, 0x1000)
    uc.mem_write(CODE, LOOP)
    return uc


@pytest.fixture
def listening():
    """Let interrupts mean what they do in a new interpreter that has a machine."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupts.listen()
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def unseen(monkeypatch):
    """Return what Python could only print."""
    found = []
    monkeypatch.setattr(sys, "unraisablehook", found.append)
    return found


def interrupt_soon():
    """Send an interrupt while the emulator runs, which Python sees when it is called back."""

    def send():
        time.sleep(0.02)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=send).start()


def test_an_interrupt_at_the_entry_of_a_hook_ends_the_run(uc, listening, unseen):
    """Where the binding catches nothing yet, the interrupt still comes out of the run."""
    uc.hook_add(uc_const.UC_HOOK_BLOCK, lambda *_: None, None, AFTER, AFTER)
    interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        interrupts.start(uc, CODE, AFTER + 1)
    assert not unseen
    interrupts.start(uc, AFTER, AFTER + 1)  # and only once


def test_an_interrupt_in_a_hook_comes_out_of_it(uc, listening, unseen):
    """What a hook does can be interrupted, and may catch that."""
    caught = []

    def hook(*_):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            caught.append(True)
        else:
            pytest.fail("nothing was raised")

    uc.hook_add(uc_const.UC_HOOK_BLOCK, hook, None, AFTER, AFTER)
    interrupts.start(uc, AFTER, AFTER + 1)
    assert caught == [True]
    assert not unseen


def test_an_interrupt_in_a_hook_is_not_taken_for_a_fault(uc, listening, unseen):
    """An interrupt wins over what the emulator says of the same moment."""

    def hook(*_):
        uc.reg_write(unicorn.x86_const.UC_X86_REG_RIP, 0x10_0000)
        signal.raise_signal(signal.SIGINT)

    uc.hook_add(uc_const.UC_HOOK_MEM_FETCH_UNMAPPED, hook)
    with pytest.raises(KeyboardInterrupt):
        interrupts.start(uc, 0x20_0000, 0)
    assert not unseen


def test_an_interrupt_outside_is_raised_at_once(listening):
    """Nothing runs: it is as it always was."""
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_what_others_made_of_interrupts_is_left_alone():
    """A handler that somebody else has set stays."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupts.listen()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("listens", [False, True])
def test_an_interrupt_that_comes_by_two_ways_is_one(listening, listens):
    """Signalled with its group, a worker is signalled again by the one that watches it."""
    signal.signal(signal.SIGINT, process.interrupt)  # the fixture sets back what was before
    if listens:
        interrupts.listen()
    time.sleep(2 * process.SAME)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    time.sleep(2 * process.SAME)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


class _Gone:
    """What is interrupted while it is put away."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_in_a_finaliser_comes_again(monkeypatch, capsys):
    """Where Python can only print what is raised, nothing is printed, and the interrupt is not lost."""
    monkeypatch.setattr(sys, "unraisablehook", process.unraisable)
    monkeypatch.setattr(process, "_interrupted", -1.0)
    before = signal.signal(signal.SIGINT, process.interrupt)
    alarm = signal.getsignal(signal.SIGALRM)
    try:
        with pytest.raises(KeyboardInterrupt):
            _put_away_and_wait()
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGALRM, alarm)
    assert capsys.readouterr().err == ""


def _put_away_and_wait():
    gone = _Gone()
    del gone
    time.sleep(30)


def test_what_else_is_raised_in_a_finaliser_is_printed(monkeypatch, capsys):
    """Only interrupts come again."""

    class Wrong:
        def __del__(self):
            raise ValueError("a fault")

    monkeypatch.setattr(sys, "unraisablehook", process.unraisable)
    wrong = Wrong()
    del wrong
    assert "ValueError: a fault" in capsys.readouterr().err
