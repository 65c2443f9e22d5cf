# SPDX-License-Identifier: GPL-2.0-or-later
"""The tasks of the course, a file each."""

from samples.course.task import Task
from samples.course.tasks import (
    by_hand,
    byte_by_byte,
    churn,
    elsewhere,
    fewest_batches,
    fewest_flushes,
    first_refusal,
    four_users,
    load_order,
    missing_sync,
    never_both,
    one_bit,
    one_plt,
    one_store,
    one_upper,
    own_entries,
    repair_else,
    same_bytes,
    share_pages,
    side_by_side,
    small_bomb,
    three_sizes,
    two_addresses,
    when_to_free,
    window,
)

# In the order of the course.
TASKS: dict[str, Task] = {
    module.TASK.name: module.TASK
    for module in (
        elsewhere,
        by_hand,
        one_plt,
        same_bytes,
        one_upper,
        first_refusal,
        repair_else,
        own_entries,
        load_order,
        three_sizes,
        byte_by_byte,
        one_bit,
        small_bomb,
        share_pages,
        one_store,
        missing_sync,
        when_to_free,
        fewest_batches,
        side_by_side,
        fewest_flushes,
        never_both,
        two_addresses,
        four_users,
        churn,
        window,
    )
}
