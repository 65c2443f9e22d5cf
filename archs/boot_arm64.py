# SPDX-License-Identifier: GPL-2.0-or-later
"""What one boot of an arm64 kernel found of capabilities and errata that decide about modules.

Sources: arch/arm64/kernel/cpufeature.c and cpu_errata.c.
"""

from __future__ import annotations

from collections.abc import Mapping

from archs.environment import Boot, Environment
from archs.versions import MODELLED, Version

# Numbers of Linux 6.12's arch/arm64/tools/cpucaps, of all the capabilities that alternatives
# of a distribution's modules name.
CAPABILITIES = {
    "ALWAYS_BOOT": 0,
    "ALWAYS_SYSTEM": 1,
    "HAS_FPSIMD": 25,
    "HAS_LSE_ATOMICS": 37,
    "HAS_VIRT_HOST_EXTN": 51,
    "WORKAROUND_DEVICE_LOAD_ACQUIRE": 95,
}
# The same of other versions; the numbers move whenever a capability is added.
OTHERS: Mapping[Version, Mapping[str, int]] = {
    (5, 10): {"HAS_LSE_ATOMICS": 5},
    (6, 1): {"HAS_LSE_ATOMICS": 26},
    (7, 2): {"HAS_LSE_ATOMICS": 42},
}
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


def numbers(environment: Environment) -> frozenset[int] | None:
    """Return the numbers of the capabilities that are there; None in a version without known ones."""
    version = environment.version
    if environment.capabilities is None and version != MODELLED and version not in OTHERS:
        return None
    return environment.numbers(CAPABILITIES if version == MODELLED else OTHERS.get(version, {}))


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
