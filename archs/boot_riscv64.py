# SPDX-License-Identifier: GPL-2.0-or-later
"""What one boot of a riscv64 kernel found of extensions and errata that decide about modules.

Sources: arch/riscv/kernel/cpufeature.c; arch/riscv/errata/thead.
"""

from __future__ import annotations

from archs.environment import Boot, Environment

THEAD = 0x5B7
_MODELS = {
    "rv64": "rv64imafdch_zicsr_zifencei_zihintpause_zba_zbb_zbc_zbs_sstc",
    "sifive-u54": "rv64imafdc_zicsr_zifencei",
}
# Numbers of the extensions that have a name of more than one letter (asm/hwcap.h, Linux
# 6.12); a letter's number is its place in the alphabet.
EXTENSIONS = dict(
    enumerate(
        """sscofpmf sstc svinval svpbmt zbb zicbom zihintpause svnapot zicboz smaia ssaia zba zbs
        zicntr zicsr zifencei zihpm smstateen zicond zbc zbkb zbkc zbkx zknd zkne zknh zkr zksed
        zksh zkt zvbb zvbc zvkb zvkg zvkned zvknha zvknhb zvksed zvksh zvkt zfh zfhmin zihintntl
        zvfh zvfhmin zfa ztso zacas zve32x zve32f zve64x zve64f zve64d zimop zca zcb zcd zcf
        zcmop zawrs""".split(),
        26,
    )
)


def environment(boot: Boot) -> Environment:
    """Return extensions and errata of all harts (arch/riscv/kernel/cpufeature.c, errata/thead).

    Extensions go by their names in the ISA string; a version of the vector extension brings
    its subsets along, as the kernel's cpuinfo already says.
    """
    model, *options = boot.model.split(",")
    isa = boot.cpu.get("isa", _MODELS.get(model, ""))
    base, *names = isa.removeprefix("rv64").split("_")
    found = {*base, *names}
    if not boot.cpu:
        chosen = dict(option.partition("=")[::2] for option in options)
        found |= {name for name, value in chosen.items() if value in ("on", "true")}
        found -= {name for name, value in chosen.items() if value in ("off", "false")}
    if "v" in found:
        found |= {"zve32x", "zve32f", "zve64x", "zve64f", "zve64d"}
    ids = [int(boot.cpu.get(name, "0"), 0) for name in ("mvendorid", "marchid", "mimpid")]
    if ids == [THEAD, 0, 0]:
        found.add("ERRATA_THEAD_MAE")
    # riscv_spinlock_init(), since 6.13: what makes exchanges of a byte or a half word fair.
    queued = {"zabha", "zacas"} <= found or "ziccrse" in found
    return Environment(
        features=frozenset(found),
        possible_cpus=boot.possible_cpus,
        symbols=boot.symbols,
        static_keys={"qspinlock_key": queued},
    )
