# SPDX-License-Identifier: GPL-2.0-or-later
"""Block devices (block/blk-mq.c, block/genhd.c): disks are made and recorded; no request comes."""

from __future__ import annotations

from allocator.types import align_up
from kernels.modelled.api.common import nothing
from kernels.modelled.api.memory import GFP_ZERO, kfree, kmalloc
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import size_of, view
from kernels.modelled.structs import struct as declare
from kernels.modelled.table import function

declare("gendisk", "major first_minor minors disk_name part0 fops queue")
declare("request_queue", "queuedata")
DISK, PART, QUEUE = size_of("gendisk"), size_of("block_device"), size_of("request_queue")
ALIGN = 64  # what their types ask for at the most


def _disk(k: Kernel, queuedata: int) -> int:
    part = align_up(DISK(k), ALIGN)
    queue = part + align_up(PART(k), ALIGN)
    disk = kmalloc(k, queue + QUEUE(k), GFP_ZERO)
    if disk:
        found = view(k, "gendisk", disk)
        found.put("part0", disk + part)
        found.put("queue", disk + queue)
        view(k, "request_queue", disk + queue).put("queuedata", queuedata)
    return disk


@function(
    "struct gendisk *__blk_mq_alloc_disk(struct blk_mq_tag_set *set, struct queue_limits *lim,"
    " void *queuedata, struct lock_class_key *lkclass)"
)
def _blk_mq_alloc_disk(k: Kernel, _set: int, _limits: int, queuedata: int, _key: int) -> int:
    return _disk(k, queuedata)


@function(
    "struct gendisk *__blk_alloc_disk(struct queue_limits *lim, int node,"
    " struct lock_class_key *lkclass)"
)
def _blk_alloc_disk(k: Kernel, _limits: int, _node: int, _key: int) -> int:
    return _disk(k, 0)


@function(
    "int device_add_disk(struct device *parent, struct gendisk *disk,"
    " const struct attribute_group **groups)"
)
def _device_add_disk(k: Kernel, _parent: int, disk: int, _groups: int) -> int:
    found = view(k, "gendisk", disk)
    fields = {member: found.number(member) for member in ("major", "first_minor", "minors")}
    k.register("disk", disk, found.text("disk_name"), fields=fields)
    return 0


@function("void del_gendisk(struct gendisk *disk)")
def _del_gendisk(k: Kernel, disk: int) -> None:
    k.registry.remove("disk", disk)


@function("void put_disk(struct gendisk *disk)")
def _put_disk(k: Kernel, disk: int) -> None:
    if not disk:
        return
    operations = view(k, "gendisk", disk).number("fops")
    if operations and (
        release := view(k, "block_device_operations", operations).number("free_disk")
    ):
        k.call(release, disk)
    kfree(k, disk)


nothing(
    "int blk_mq_alloc_tag_set(struct blk_mq_tag_set *set)",
    "void blk_mq_free_tag_set(struct blk_mq_tag_set *set)",
    "void set_capacity(struct gendisk *disk, sector_t sectors)",
    "bool set_capacity_and_notify(struct gendisk *disk, sector_t size)",
    "void set_disk_ro(struct gendisk *disk, bool read_only)",
    "int blkcg_policy_register(struct blkcg_policy *pol)",
    "void blkcg_policy_unregister(struct blkcg_policy *pol)",
    "int elv_register(struct elevator_type *e)",
    "void elv_unregister(struct elevator_type *e)",
)
