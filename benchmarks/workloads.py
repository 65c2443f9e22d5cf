# SPDX-License-Identifier: GPL-2.0-or-later
"""What an operation of a workload costs under a design: CPU time of the whole run, by operation.

Runs are repeated, each over fresh memory; the least of them is told, as nothing but other work on
the machine makes one slower. To compare two versions, run it in both, in turn.

    python -m benchmarks.workloads                                  # four workloads, under a minute
    python -m benchmarks.workloads --design vmalloc --arch riscv64 bpf
"""

from __future__ import annotations

import argparse
import sys
import time

from allocator.workloads import Runner, workload
from archs import arch, archs
from execmem.comparing.compare import branch_reach, execmem_for

WORKLOADS = ("server", "debian", "churn", "bpf-2048")


def measured(name: str, arch_name: str, design: str) -> tuple[float, int]:
    """Return CPU microseconds per alloc and free, and how many of these there were."""
    chosen, load = arch(arch_name), workload(name, arch_name)
    execmem = execmem_for(chosen, design, memory=load.memory)
    runner = Runner(execmem, branch_reach(chosen), rules=chosen.loads.tlb)
    began = time.process_time()
    for operation in load.operations:
        runner.step(operation)
    took = time.process_time() - began
    count = runner.measure(itlb=False).operations
    return took * 1e6 / count, count


def main() -> None:
    """Print a row for each workload and architecture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*", default=WORKLOADS, metavar="WORKLOAD")
    parser.add_argument("--arch", action="append", choices=[one.name for one in archs()])
    parser.add_argument("--design", default="default")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    sys.stdout.write("workload   architecture  operations  us/operation\n")
    for name in options.workloads:
        for arch_name in options.arch or ("x86_64", "arm64"):
            found = [measured(name, arch_name, options.design) for _ in range(options.runs)]
            least, count = min(found)
            sys.stdout.write(f"{name:10} {arch_name:12} {count:11,} {least:13.1f}\n")


if __name__ == "__main__":
    main()
