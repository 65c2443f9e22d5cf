# SPDX-License-Identifier: GPL-2.0-or-later
"""What one boot of an arm64 kernel found of capabilities and errata that decide about modules.

Sources: arch/arm64/kernel/cpufeature.c and cpu_errata.c.
"""

from __future__ import annotations

from collections.abc import Mapping

from archs.environment import Boot, Environment
from archs.numbers import Numbers

# Numbers of all the capabilities that alternatives of a distribution's modules name
# (arch/arm64/tools/cpucaps, as Debian's headers have it). They move whenever a capability is added.
CAPABILITIES = Numbers(
    {
        "ALWAYS_BOOT": 0,
        "ALWAYS_SYSTEM": 1,
        "HAS_FPSIMD": 25,
        "HAS_GIC_PRIO_MASKING": 31,
        "HAS_LSE_ATOMICS": 37,
        "HAS_VIRT_HOST_EXTN": 51,
        "WORKAROUND_DEVICE_LOAD_ACQUIRE": 95,
    },
    {
        (5, 10): {
            "ALWAYS_BOOT": None,
            "ALWAYS_SYSTEM": None,
            "HAS_FPSIMD": None,
            "HAS_GIC_PRIO_MASKING": None,
            "WORKAROUND_DEVICE_LOAD_ACQUIRE": 1,
            "HAS_LSE_ATOMICS": 5,
            "HAS_UAO": 9,
            "HAS_VIRT_HOST_EXTN": 11,
            "HAS_NO_FPSIMD": 16,
        },
        (6, 1): {
            "HAS_FPSIMD": None,
            "HAS_GIC_PRIO_MASKING": 24,  # HAS_IRQ_PRIO_MASKING then
            "HAS_LSE_ATOMICS": 26,
            "HAS_NO_FPSIMD": 27,
            "HAS_VIRT_HOST_EXTN": 37,
            "WORKAROUND_DEVICE_LOAD_ACQUIRE": 78,
        },
        (7, 2): {
            "HAS_FPSIMD": 26,
            "HAS_GIC_PRIO_MASKING": 35,
            "HAS_LSE_ATOMICS": 42,
            "HAS_VIRT_HOST_EXTN": 63,
            "WORKAROUND_DEVICE_LOAD_ACQUIRE": 115,
        },
        (7, 3): {  # -rc7
            "HAS_FPSIMD": 27,
            "HAS_GIC_PRIO_MASKING": 36,
            "HAS_LSE_ATOMICS": 43,
            "HAS_VIRT_HOST_EXTN": 65,
            "WORKAROUND_DEVICE_LOAD_ACQUIRE": 117,
        },
    },
)
KEYS, KEY_SIZE = "cpu_hwcap_keys", 16  # struct static_key_false
# Capability -> implementer, part, and the first and last revision (variant, revision) that
# need it (arch/arm64/kernel/cpu_errata.c; asm/cputype.h).
ERRATA = (
    ("WORKAROUND_843419", 0x41, 0xD03, (0, 0), (0, 4)),  # Cortex-A53
    ("WORKAROUND_843419", 0x42, 0x100, (0, 0), (0, 0)),  # Brahma-B53
    ("WORKAROUND_DEVICE_LOAD_ACQUIRE", 0x41, 0xD07, (0, 0), (1, 2)),  # Cortex-A57
)
# What cpuinfo would say about the emulator's CPU models: part, variant, revision, features.
_MODELS = {
    "cortex-a53": (0x41, 0xD03, 0, 4, "fp asimd"),
    "cortex-a57": (0x41, 0xD07, 1, 0, "fp asimd"),
    "cortex-a72": (0x41, 0xD08, 0, 3, "fp asimd"),
    "cortex-a76": (0x41, 0xD0B, 4, 1, "fp asimd atomics"),
    "neoverse-n1": (0x41, 0xD0C, 4, 1, "fp asimd atomics"),
    "max": (0, 0x51, 0, 0, "fp asimd atomics"),
}


def environment(boot: Boot) -> Environment:
    """Return a boot's capabilities that decide about modules (cpufeature.c, cpu_errata.c).

    What cpuinfo lists are the capabilities that all CPUs share; errata follow from the main
    ID register. Whether the kernel runs at EL2 with host extensions only the console says.
    """
    implementer, part, variant, revision, flags = _MODELS.get(boot.model, (0, 0, 0, 0, ""))
    if boot.cpu:
        names = ("CPU implementer", "CPU part", "CPU variant", "CPU revision")
        implementer, part, variant, revision = (int(boot.cpu.get(name, "0"), 0) for name in names)
        flags = boot.cpu.get("Features", "")
    found = {"ALWAYS_BOOT", "ALWAYS_SYSTEM"}
    listed = {"fp": "HAS_FPSIMD", "atomics": "HAS_LSE_ATOMICS"}
    found |= {listed[flag] for flag in flags.split() if flag in listed}
    if "detected: Virtualization Host Extensions" in boot.console:
        found.add("HAS_VIRT_HOST_EXTN")
    for name, *cpu, first, last in ERRATA:
        if cpu == [implementer, part] and first <= (variant, revision) <= last:
            found.add(name)
    return Environment(
        features=frozenset(found),
        possible_cpus=boot.possible_cpus,
        symbols=boot.symbols,
        static_keys=_keys(boot),
    )


def _keys(boot: Boot) -> Mapping[str, bool]:
    """Return the static keys of capabilities, which code went by before alternatives (5.10).

    They are an array, an element for each capability, on once the kernel has found it.
    """
    if KEYS not in boot.symbols or boot.capabilities is None:
        return {}
    here = {f"{KEYS}+{KEY_SIZE * number:#x}": True for number in boot.capabilities}
    return here | {"arm64_const_caps_ready": True}
