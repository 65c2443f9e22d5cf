# SPDX-License-Identifier: GPL-2.0-or-later
"""Open files of devices, as far as drivers see them (include/linux/fs.h, fs/open.c).

Who opens a device is Python (`Machine.device`), which forms the two structures that callbacks
are given; here is what they look like, and the functions that drivers have as callbacks.
"""

from __future__ import annotations

import enum

from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import struct, view
from kernels.modelled.table import function

struct("file", "f_count f_mode f_op private_data f_inode f_flags f_pos_lock f_pos")
struct("inode", "i_mode i_rdev i_cdev")


class Mode(enum.IntFlag):
    """Bits of `struct file.f_mode`."""

    READ = 1
    WRITE = 1 << 1
    LSEEK = 1 << 2
    PREAD = 1 << 3
    PWRITE = 1 << 4
    CAN_READ = 1 << 17
    CAN_WRITE = 1 << 18
    OPENED = 1 << 19
    STREAM = 1 << 21


def _without(k: Kernel, file: int, off: Mode, on: int = 0) -> int:
    found = view(k, "file", file)
    found.put("f_mode", found.number("f_mode") & ~off | on)
    return 0


@function("int nonseekable_open(struct inode *inode, struct file *filp)")
def _nonseekable_open(k: Kernel, _inode: int, file: int) -> int:
    return _without(k, file, Mode.LSEEK | Mode.PREAD | Mode.PWRITE)


@function("int stream_open(struct inode *inode, struct file *filp)")
def _stream_open(k: Kernel, _inode: int, file: int) -> int:
    return _without(k, file, Mode.LSEEK | Mode.PREAD | Mode.PWRITE, Mode.STREAM)


@function("int generic_file_open(struct inode *inode, struct file *filp)")
def _generic_file_open(_k: Kernel, _inode: int, _file: int) -> int:
    return 0


@function("loff_t noop_llseek(struct file *file, loff_t offset, int whence)")
def _noop_llseek(k: Kernel, file: int, _offset: int, _whence: int) -> int:
    return view(k, "file", file).number("f_pos")
