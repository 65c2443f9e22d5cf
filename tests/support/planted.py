# SPDX-License-Identifier: GPL-2.0-or-later
"""What code that got out of the emulator would try: native calls, to be made by a worker."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17  # of ptrace
_LIBC.ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


def number(name):
    """Return the number of a system call on this host, as libseccomp has it."""
    import pyseccomp

    return pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)


def _inet(port):
    return struct.pack("=H", socket.AF_INET) + struct.pack(">H4s8x", port, bytes([127, 0, 0, 1]))


def _unix(path):
    return struct.pack("=H108s", socket.AF_UNIX, path.encode())


def _connect(family, kind, address):
    made = _LIBC.socket(family, kind, 0)
    return made if made < 0 else _LIBC.connect(made, address, len(address))


def _bind(family, kind, address):
    made = _LIBC.socket(family, kind, 0)
    return made if made < 0 else _LIBC.bind(made, address, len(address))


def _open(path, flags):
    return _LIBC.open(path.encode(), flags, 0o600)


def _call(name, *arguments):
    return _LIBC.syscall(number(name), *(a if isinstance(a, bytes) else int(a) for a in arguments))


def _exec(place):
    argv = (ctypes.c_char_p * 2)(b"/bin/true", None)
    return _LIBC.execve(b"/nowhere/true" if place["control"] else b"/bin/true", argv, argv)


def _ptrace(pid):
    result = _LIBC.ptrace(_SEIZE, pid, None, None)
    if result == 0:  # its parent waits for it in vain as long as it is ours
        _LIBC.ptrace(_INTERRUPT, pid, None, None)
        os.waitpid(pid, 0x40000000)  # __WALL
        _LIBC.ptrace(_DETACH, pid, None, None)
    return result


def _vector(place):
    buffer = ctypes.create_string_buffer(8)
    local = struct.pack("PN", ctypes.addressof(buffer), 8)
    return _LIBC.process_vm_readv(place["victim"], local, 1, struct.pack("PN", 0x1000, 8), 1, 0)


# What it is called -> what is done: with a folder, a home, ports and a victim in `place`.
CALLS = {
    "open in /tmp to write": lambda p: _open(f"{p['folder']}/made", os.O_WRONLY | os.O_CREAT),
    "open in $HOME to write": lambda p: _open(f"{p['home']}/made", os.O_WRONLY | os.O_CREAT),
    "open to write": lambda p: _open(f"{p['folder']}/there", os.O_WRONLY),
    "open to append": lambda p: _open(f"{p['folder']}/there", os.O_RDWR | os.O_APPEND),
    "open to truncate": lambda p: _open(f"{p['folder']}/there", os.O_RDONLY | os.O_TRUNC),
    "open without a name": lambda p: _open(p["folder"], os.O_TMPFILE | os.O_RDWR),
    "creat": lambda p: _LIBC.creat(f"{p['folder']}/made".encode(), 0o600),
    "truncate": lambda p: _LIBC.truncate(f"{p['folder']}/there".encode(), 1),
    "mkdir": lambda p: _LIBC.mkdir(f"{p['folder']}/made".encode(), 0o700),
    "unlink": lambda p: _LIBC.unlink(f"{p['folder']}/extra".encode()),
    "rename": lambda p: _LIBC.rename(
        f"{p['folder']}/moved".encode(), f"{p['folder']}/made".encode()
    ),
    "link": lambda p: _LIBC.link(f"{p['folder']}/there".encode(), f"{p['folder']}/made".encode()),
    "symlink": lambda p: _LIBC.symlink(b"/etc/passwd", f"{p['folder']}/made".encode()),
    "chmod": lambda p: _LIBC.chmod(f"{p['folder']}/there".encode(), 0o777),
    "mknod": lambda p: _LIBC.mkfifo(f"{p['folder']}/made".encode(), 0o600),
    "open a file that is not its own": lambda p: _open(f"{p['folder']}/there", os.O_RDONLY),
    "list a folder that is not its own": lambda p: _open(p["home"], os.O_RDONLY | os.O_DIRECTORY),
    "write to its own memory by /proc": lambda _: _open("/proc/self/mem", os.O_RDWR),
    "socket": lambda _: _LIBC.socket(socket.AF_INET, socket.SOCK_STREAM, 0),
    "UDP socket": lambda _: _LIBC.socket(socket.AF_INET6, socket.SOCK_DGRAM, 0),
    "netlink socket": lambda _: _LIBC.socket(16, socket.SOCK_RAW, 0),
    "connect": lambda p: _connect(socket.AF_INET, socket.SOCK_STREAM, _inet(p["port"])),
    "bind": lambda _: _bind(socket.AF_INET, socket.SOCK_STREAM, _inet(0)),
    "connect a Unix socket": lambda p: _connect(
        socket.AF_UNIX, socket.SOCK_STREAM, _unix(f"{p['folder']}/socket")
    ),
    "bind a Unix socket": lambda p: _bind(
        socket.AF_UNIX, socket.SOCK_STREAM, _unix(f"{p['folder']}/made")
    ),
    "fork": lambda _: _forked(_LIBC.fork()),
    "execve": _exec,
    "kill another": lambda p: _LIBC.kill(p["victim"], signal.SIGTERM),
    "kill the parent": lambda _: _LIBC.kill(os.getppid(), 0),
    "kill everybody": lambda p: _LIBC.kill(0 if p["control"] else -1, 0),
    "signal by pidfd": lambda p: _call("pidfd_open", p["victim"], 0),
    "ptrace another": lambda p: _ptrace(p["victim"]),
    "ptrace the parent": lambda p: _ptrace(p["victim"] if p["control"] else os.getppid()),
    "read another's memory": _vector,
    "limit another": lambda p: _LIBC.prlimit(p["victim"], 7, None, ctypes.create_string_buffer(16)),
    "send descriptors": lambda _: _call("sendmsg", 0, 0, 0),
    "type into a terminal": lambda _: _LIBC.ioctl(0, 0x5412, b"x"),
    "own a signal of a descriptor": lambda p: _LIBC.fcntl(0, 8, p["victim"]),
    "io_uring_setup": lambda _: _call("io_uring_setup", 1, ctypes.create_string_buffer(120).raw),
    "bpf": lambda _: _call("bpf", 0, bytes(128), 128),
    "userfaultfd": lambda _: _call("userfaultfd", 1),
    "keyctl": lambda _: _call("keyctl", 0, -3, 0),
    "perf_event_open": lambda _: _call("perf_event_open", bytes(128), 0, -1, -1, 0),
    "mount": lambda _: _LIBC.mount(b"none", b"/", b"nothing", 0, None),
    "unshare": lambda _: _LIBC.unshare(0x10000000),
    "setns": lambda _: _LIBC.setns(-1, 0),
    "chroot": lambda _: _LIBC.chroot(b"/nowhere"),
    "init_module": lambda _: _call("init_module", 0, 0, b""),
    "open by handle": lambda _: _call("open_by_handle_at", -1, bytes(16), 0),
    "another filter": lambda _: _call("seccomp", 1, 0, 0),
    "raise a hard limit": lambda _: _LIBC.setrlimit(4, struct.pack("QQ", 1 << 20, 1 << 20)),
}


def _forked(child):
    if child == 0:
        os._exit(0)
    if child > 0:
        os.waitpid(child, 0)
    return child


def attempt(asked):
    """Make a call; return its result, and the name of its error where it failed."""
    name, place = asked
    ctypes.set_errno(0)
    result = CALLS[name](place)
    return result, "" if result >= 0 else errno.errorcode[ctypes.get_errno()]


def own(_: Mapping[str, object]):
    """Do what a machine does: map memory that is written and executed, threads, files in memory."""
    from threading import Thread

    done = []
    thread = Thread(target=done.append, args=("thread",))
    thread.start()
    thread.join()
    file = os.memfd_create("ours")
    os.ftruncate(file, 1 << 20)
    os.pwrite(file, b"x", 4096)
    prot = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    mmap.mmap(-1, 4096, prot=prot).close()
    os.kill(os.getpid(), 0)
    return [*done, Path("/proc/self/statm").read_text("ascii") != ""]
