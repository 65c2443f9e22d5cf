# SPDX-License-Identifier: GPL-2.0-or-later
"""Work in several processes: every answer, and an end wherever an interrupt comes."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from execmem.pool import each, held_back

HERE = Path(__file__).parents[2]

# An interrupt that arrives in this thread just when the standard library has taken a lock.
IN_A_LOCK = """
import signal, threading, time
from contextlib import closing
from execmem.pool import each

enter, rest = threading.Condition.__enter__, [{nth}]

def interrupted(condition):
    found = enter(condition)
    if started and threading.current_thread() is threading.main_thread():
        rest[0] -= 1
        if not rest[0]:
            signal.raise_signal(signal.SIGINT)
    return found

started = []
threading.Condition.__enter__ = interrupted
try:
    with closing(each(time.sleep, [0.02] * 60, 2)) as answers:
        for number, _ in enumerate(answers):
            started.append(number)
except KeyboardInterrupt:
    print("interrupted")
else:
    print("whole")
"""


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_each_answers_once(jobs):
    """Every item's answer comes once, from however many processes."""
    items = range(-50, 1)
    assert sorted(each(abs, items, jobs)) == list(range(51))
    assert list(each(abs, [], jobs)) == []


def test_processes_are_other_ones():
    """Two jobs are done elsewhere; one is done here."""
    assert os.getpid() not in set(each(_process, range(8), 2))
    assert set(each(_process, range(8), 1)) == {os.getpid()}


def _process(_number):
    return os.getpid()


def test_an_error_of_the_work_is_raised():
    """As it was, here."""
    with pytest.raises(ZeroDivisionError):
        list(each(_inverse, [2, 1, 0, 4], 2))


def _inverse(number):
    return 1 / number


@pytest.mark.parametrize("nth", [1, 2, 3, 20, 40])
def test_an_interrupt_inside_a_lock_hangs_nothing(nth):
    """The lock of an answer is given back, whenever Ctrl-C comes."""
    done = subprocess.run(
        [sys.executable, "-c", IN_A_LOCK.format(nth=nth)],
        cwd=HERE, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == "interrupted\n", done.stderr
    assert done.stderr == ""


def test_interrupts_are_raised_where_it_is_asked():
    """Not in between; and at the end at the latest."""
    before, reached = signal.getsignal(signal.SIGINT), []
    with held_back() as check:
        check()
        signal.raise_signal(signal.SIGINT)
        reached.append("behind it")
        with pytest.raises(KeyboardInterrupt):
            check()
        check()  # it was one
    assert reached
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        _interrupted_at_the_end(reached)
    assert len(reached) == 2
    assert signal.getsignal(signal.SIGINT) is before


def _interrupted_at_the_end(reached):
    with held_back():
        signal.raise_signal(signal.SIGINT)
        reached.append("at the end")


def test_nothing_changes_where_interrupts_do_not_come():
    """In another thread, and where they are ignored."""
    seen = []

    def look():
        with held_back() as check:
            check()
            seen.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        look()
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [before, signal.SIG_IGN]
