# SPDX-License-Identifier: GPL-2.0-or-later
"""The packet layer of the gdb server, and that no packet ends anything but the connection."""

from __future__ import annotations

import zlib
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import archs
from archs import Arch
from machine.control import Resume
from machine.gdb.wire import LONGEST, Framing, escaped, framed, unescaped
from tests.support.gdb import BASE, SIZE, received, session, stop

COMMANDS = (
    b"? g G p P m M X Z0 Z1 Z2 Z3 Z4 z0 z1 z2 z3 z4 H Hg Hc T c s C S k D R ! A B b bs bc i I r t"
    b" qC qSupported qXfer:features:read:target.xml qXfer:libraries:read: qXfer:threads:read:"
    b" qXfer:memory-map:read: qXfer:exec-file:read: qXfer:siginfo:read: qRcmd qOffsets qCRC"
    b" qSearch:memory qSymbol qfThreadInfo qsThreadInfo qThreadExtraInfo qAttached qTStatus"
    b" QStartNoAckMode QPassSignals vCont vCont? vMustReplyEmpty vKill vRun vAttach vFile:open"
    b" vFile:pread vFile:fstat vFile:close vFile:setfs vFile:pwrite vFile:unlink vFile:readlink"
).split()
WORDS = (
    "0 1 -1 7 8 10007 ffffffff ffffffffffffffff 8000000000000000 80000000ffffffff0 -80000000 zz"
    " ffffffff80000000 ffffffff80000fff ffffffff80001000 , ; : = . # $ } * % 2f6b65726e656c 00"
).split()


@given(st.binary(max_size=400))
def test_what_is_escaped_comes_back(data: bytes) -> None:
    """Binary data passes a packet, whatever is in it, and no byte that ends one is in it."""
    assert unescaped(escaped(data)) == data
    assert not set(escaped(data)) & set(b"#$*")


@given(st.lists(st.binary(max_size=40).map(escaped), max_size=6), st.integers(1, 9))
def test_packets_come_apart_however_they_arrive(bodies: list[bytes], size: int) -> None:
    """A stream in pieces of any size gives the packets, and acknowledgements between are left out."""
    stream = b"".join(b"+" + framed(body) for body in bodies)
    framing = Framing()
    found = [e for at in range(0, len(stream), size) for e in framing.feed(stream[at : at + size])]
    assert found == bodies


def test_what_is_damaged_is_told() -> None:
    """Wrong checksums, packets that are cut off and packets without an end are asked for again."""
    assert list(Framing().feed(b"$g#00")) == [ord("$")]
    assert list(Framing().feed(b"$g#zz")) == [ord("$")]
    assert list(Framing().feed(b"$m0,$?#3f")) == [ord("$"), b"?"]
    framing = Framing()
    assert list(framing.feed(b"$" + b"0" * (LONGEST + 8))) == [ord("$")]
    assert list(framing.feed(b"\x03$?#3f-")) == [3, b"?", ord("-")]


@given(st.binary(max_size=200))
def test_no_bytes_break_the_framing(data: bytes) -> None:
    """Any bytes are taken apart, and a packet behind them is found if an end stands between."""
    framing = Framing()
    list(framing.feed(data))
    assert list(framing.feed(b"#00+#00" + framed(b"?")))[-1:] == [b"?"]


@pytest.mark.parametrize("name", [arch.name for arch in archs.ALL])
@settings(max_examples=60, deadline=None)
@given(
    packets=st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.tuples(st.sampled_from(COMMANDS), st.lists(st.sampled_from(WORDS), max_size=6)).map(
                lambda pair: pair[0] + "".join(pair[1]).encode()
            ),
            st.tuples(
                st.sampled_from(COMMANDS),
                st.sampled_from([b":", b",", b";", b""]),
                st.lists(st.sampled_from(WORDS), max_size=4),
            ).map(lambda three: three[0] + three[1] + ",".join(three[2]).encode()),
        ),
        max_size=12,
    ),
    raw=st.booleans(),
)
def test_no_packet_ends_the_process(name: str, packets: list[bytes], raw: bool) -> None:
    """Whatever arrives, the session answers, lets the guest go on, or loses the connection."""
    with session(archs.arch(name)) as (made, control, far):
        data = b"".join(body if raw else framed(escaped(body)) for body in packets)
        found = stop(made, control, data, far)
        assert found is None or isinstance(found, Resume)


def ask(arch: Arch, *bodies: bytes) -> list[bytes]:
    """Return the answers to packets at one stop."""
    with session(arch) as (made, control, far):
        assert stop(made, control, b"".join(map(framed, bodies)), far) is None
        made.link.close()
        return [each for each in Framing().feed(received(far)) if isinstance(each, bytes)]


def test_registers_are_as_long_as_described(arch: Arch) -> None:
    """`g` has exactly the bytes that the description says, and `p` each register's."""
    asked = b"qXfer:features:read:target.xml:0,ffff", b"g", b"p0", b"pffff"
    xml, whole, first, missing = ask(arch, *asked)
    assert xml[:1] == b"l"
    root = ET.fromstring(unescaped(xml[1:]).partition(b"?>")[2])
    sizes = [-(-int(each.attrib["bitsize"]) // 8) for each in root.iter("reg")]
    assert len(whole) == 2 * sum(sizes)
    assert len(first) == 2 * sizes[0]
    assert missing == b"E01"
    names = [each.attrib["name"] for each in root.iter("reg")]
    assert len(set(names)) == len(names)
    defined = {each.attrib["id"] for each in root.iter() if "id" in each.attrib}
    used = {each.attrib["type"] for each in root.iter("reg") if "type" in each.attrib}
    known = {"int", "int32", "int64", "code_ptr", "data_ptr", "ieee_double", "i387_ext", "uint128"}
    assert used <= defined | known


def test_memory_is_read_written_and_searched(arch: Arch) -> None:
    """Reads end where memory ends, writes take hex and bytes, a search finds across pieces."""
    end = BASE + SIZE
    answers = ask(
        arch,
        b"M%x,4:00112233" % BASE,
        b"X%x,3:" % (BASE + 4) + b"}\x03}\x04\x7f",
        b"m%x,8" % BASE,
        b"m%x,10" % (end - 2),
        b"m%x,1" % end,
        b"m%x,1" % (1 << 63),
        b"X%x,5:abc" % BASE,
        b"qSearch:memory:%x;%x;" % (BASE, SIZE) + b"\x22\x33",
        b"qSearch:memory:%x;%x;zz" % (BASE, SIZE),
    )
    assert answers[:2] == [b"OK", b"OK"]
    assert answers[2] == b"00112233" + b"23247f00"
    assert answers[3] == b"0000"
    assert answers[4:7] == [b"E0e", b"E0e", b"E01"]
    assert answers[7:] == [b"1,%x" % (BASE + 2), b"0"]


def test_sums_of_memory_are_gdbs(arch: Arch) -> None:
    """`qCRC` is the CRC-32 of bzip2 without its last inversion, as gdb computes it bit by bit."""
    data = b"123456789"
    found = 0xFFFF_FFFF
    for byte in data:
        found ^= byte << 24
        for _ in range(8):
            found = (found << 1 ^ (0x04C1_1DB7 if found >> 31 else 0)) & 0xFFFF_FFFF
    assert found != zlib.crc32(data)
    wrote, said = ask(arch, b"M%x,9:%s" % (BASE, data.hex().encode()), b"qCRC:%x,9" % BASE)
    assert (wrote, said) == (b"OK", b"C%x" % found)


def test_threads_are_cpus_and_tasks(arch: Arch) -> None:
    """Both are listed; registers of a task that are not known are said to be so."""
    answers = ask(
        arch, b"qfThreadInfo", b"T10007", b"T9", b"qThreadExtraInfo,10007", b"Hg10007", b"g"
    )
    assert answers[0] == b"m1,2,10007"
    assert answers[1:3] == [b"OK", b"E01"]
    assert bytes.fromhex(answers[3].decode()) == b'a"<&task: pid 7, sleeps'
    assert answers[4] == b"OK"
    assert BASE.to_bytes(8, "little").hex().encode() in answers[5]
    assert b"xx" in answers[5]
    (xml,) = ask(arch, b"qXfer:threads:read::0,ffff")
    root = ET.fromstring(unescaped(xml[1:]))
    assert [each.attrib["id"] for each in root] == ["1", "2", "10007"]
    assert root[2].attrib["name"] == 'a"<&task'


def test_only_files_that_are_offered_are_given(arch: Arch) -> None:
    """A file that was offered is read in pieces; no other name, no write, no closed number."""
    name = b"/kernel".hex().encode()
    answers = ask(
        arch,
        b"vFile:open:%s,0,0" % name,
        b"vFile:open:%s,1,0" % name,
        b"vFile:open:%s,0,0" % b"/etc/passwd".hex().encode(),
        b"vFile:open:%s,0,0" % b"/../kernel".hex().encode(),
        b"vFile:fstat:3",
        b"vFile:pread:3,10,4",
        b"vFile:pread:3,10,ffffff",
        b"vFile:pread:4,10,0",
        b"vFile:close:3",
        b"vFile:close:3",
        b"vFile:unlink:%s" % name,
    )
    assert answers[:4] == [b"F3", b"F-1,1", b"F-1,2", b"F-1,2"]
    assert answers[4][:4] == b"F40;"
    assert unescaped(answers[4][4:])[28:36] == (800).to_bytes(8, "big")
    assert answers[5] == b"F10;" + escaped(b"}$#*\x7fELF}$#*\x7fELF")
    assert answers[6:] == [b"F0;", b"F-1,9", b"F0", b"F-1,9", b"F-1,1"]


def test_ways_to_go_on(arch: Arch) -> None:
    """Each packet that lets the guest go on says how."""
    cases = {
        b"c": Resume.CONTINUE,
        b"s": Resume.STEP,
        b"C05": Resume.CONTINUE,
        b"S05": Resume.STEP,
        b"bs": Resume.STEP_BACK,
        b"bc": Resume.CONTINUE_BACK,
        b"vCont;s:1;c": Resume.STEP,
        b"vCont;s:2;c": Resume.CONTINUE,
        b"vCont;C05:1": Resume.CONTINUE,
        b"D": Resume.DETACH,
        b"k": Resume.END,
        b"vKill;1": Resume.END,
    }
    for body, wanted in cases.items():
        with session(arch) as (made, control, far):
            assert stop(made, control, framed(body), far) is wanted, body
    with session(arch) as (made, control, far):
        assert stop(made, control, framed(b"s%x" % (BASE + 8)), far) is Resume.STEP
        assert control.pc == BASE + 8


def test_what_is_damaged_is_sent_again(arch: Arch) -> None:
    """`-` gets the last answer again, a wrong checksum a `-`, and no `+` comes once it is not wanted."""
    with session(arch) as (made, _, far):
        link = made.link
        link.send(b"OK")
        far.sendall(b"-" + b"$g#00" + framed(b"?"))
        assert link.receive() == b"?"
        link.acknowledges = False
        far.sendall(framed(b"g") + b"\x03")
        assert link.receive() == b"g"
        assert link.interrupted()
        link.forget_interrupts()
        assert not link.interrupted()
        link.close()
        assert received(far) == framed(b"OK") * 2 + b"-+"
