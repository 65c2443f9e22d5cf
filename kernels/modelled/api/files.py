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

struct(
    "file",
    "f_count:u64 f_lock:u32 f_mode:u32 f_op:ptr f_mapping:ptr private_data:ptr f_inode:ptr"
    " f_flags:u32 f_iocb_flags:u32 f_cred:ptr f_path:u64[2] f_pos_lock:u64[4] f_pos:i64 @184",
)
struct(
    "inode",
    "i_mode:u16 i_opflags:u16 i_uid:u32 i_gid:u32 i_flags:u32 i_acl:ptr i_default_acl:ptr i_op:ptr"
    " i_sb:ptr i_mapping:ptr i_security:ptr i_ino:u64 i_nlink:u32 i_rdev:u32 i_size:i64"
    " @576 i_cdev:ptr @624",
)


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
