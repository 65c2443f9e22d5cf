# SPDX-License-Identifier: GPL-2.0-or-later
"""What one boot of a riscv64 kernel found of extensions and errata that decide about modules.

Sources: arch/riscv/kernel/cpufeature.c; arch/riscv/errata/thead.
"""

from __future__ import annotations

from archs.environment import Boot, Environment
from archs.numbers import Numbers

THEAD = 0x5B7
_MODELS = {
    "rv64": "rv64imafdch_zicsr_zifencei_zihintpause_zba_zbb_zbc_zbs_sstc",
    "sifive-u54": "rv64imafdc_zicsr_zifencei",
}
# Numbers of extensions (asm/hwcap.h, as Debian's headers have it): a letter's is its place in the
# alphabet. 7.2 and 7.3-rc7 have those of 6.12, and more; in 6.1 there were six.
_LETTERS = {chr(ord("a") + number): number for number in range(26)}
_NAMED = dict(
    enumerate(
        """sscofpmf sstc svinval svpbmt zbb zicbom zihintpause svnapot zicboz smaia ssaia zba zbs
        zicntr zicsr zifencei zihpm smstateen zicond zbc zbkb zbkc zbkx zknd zkne zknh zkr zksed
        zksh zkt zvbb zvbc zvkb zvkg zvkned zvknha zvknhb zvksed zvksh zvkt zfh zfhmin zihintntl
        zvfh zvfhmin zfa ztso zacas zve32x zve32f zve64x zve64f zve64d zimop zca zcb zcd zcf
        zcmop zawrs svvptc""".split(),
        26,
    )
)
_7_2 = dict(
    enumerate(
        """smmpm smnpm ssnpm zabha ziccrse svade svadu zfbfmin zvfbfmin zvfbfwma zaamo zalrsc zicbop
        svrsw60t59b zalasr zilsd zclsd zicfilp zicfiss""".split(),
        87,
    )
)
_7_3 = dict(
    enumerate(
        """sscsrind smcsrind smcntrpmf ssccfg smcdeleg ssqosid zicclsm ziccamoa ziccif
        za64rs""".split(),
        106,
    )
)
_6_1 = dict(enumerate("sscofpmf svpbmt zicbom zihintpause sstc svinval".split(), 26))
EXTENSIONS = Numbers(
    {name: number for number, name in _NAMED.items()} | _LETTERS,
    {
        (6, 1): dict.fromkeys(_NAMED.values()) | {name: at for at, name in _6_1.items()},
        (7, 2): {name: at for at, name in _7_2.items()},
        (7, 3): {name: at for at, name in (_7_2 | _7_3).items()},
    },
)


ATOMICS = frozenset(("zaamo", "zalrsc"))  # what the letter a stands for, by names of their own


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
    if "a" in found:
        found |= ATOMICS
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
