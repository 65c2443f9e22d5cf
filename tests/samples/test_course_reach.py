# SPDX-License-Identifier: GPL-2.0-or-later
"""Tasks of the lessons about reach: what an answer is worth, from addresses and manuals."""

from __future__ import annotations

import random
import re

from archs import arch as arch_by_name
from samples.course.tasks import TASKS
from tests.samples.test_course import failing, grade


def test_same_bytes_leave_each_adrp_in_its_page():
    """Passes where data moves by whole pages, and each ADRP by as many page boundaries; none is nearer."""
    text = TASKS["same-bytes"].file(arch_by_name("arm64"))
    places = [int(each, 16) for each in re.findall(r"adrp at (0x\w+),", text)]
    start = int(re.search(r"Code at (0x\w+)", text)[1], 16)
    taken = int(re.search(r"below (0x\w+)", text)[1], 16) - start

    def pages(code):
        return [(place + code) // 4096 - place // 4096 for place in places]

    passing = [code for code in range(taken, 0xD000, 4) if len(set(pages(code))) == 1]
    best = min(code + 4096 * pages(code)[0] for code in passing)
    assert TASKS["same-bytes"].best == {"arm64": best}
    chance, passed = random.Random(12), 0
    answers = [(min(passing), 4096 * pages(min(passing))[0]), (0, 0), (min(passing) - 4, 0x3000)]
    answers += [(code, 4096 * pages(code)[0] + chance.choice((0, 8))) for code in passing[::999]]
    for code, data in answers:
        verdict = grade("same-bytes", "arm64", code=code, data=data)
        moved = [4096 * each == data for each in pages(code)]
        assert [check.passed for check in verdict.checks] == [code >= taken, *moved]
        assert [int(check.found, 16) for check in verdict.checks[1:]] == [
            4096 * each for each in pages(code)
        ]
        assert verdict.score == code + data
        passed += verdict.passed
    assert 1 < passed < len(answers)
    assert failing(grade("same-bytes", "arm64", code=0, data=0)) == {"code moves by"}
