# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem crypto`: let an algorithm compute that a module registered, or a booted kernel has."""

from __future__ import annotations

from typing import Any

import click

from execmem.commands.common import (
    argument,
    boots,
    console_option,
    examples,
    load_one,
    machine_for,
    modelled_option,
    module_options,
    parameters,
    sandbox_option,
    unknown_option,
)
from execmem.streams import say


@click.command()
@click.argument("algorithm", metavar="ALGORITHM")
@click.argument("data", metavar="DATA")
@click.option("--key", metavar="KEY", help="the key, as DATA")
@click.option("--iv", metavar="IV", help="the initialisation vector, as DATA")
@click.option("--associated", metavar="DATA", default="str:", help="authenticated, not encrypted")
@click.option("--tag-size", type=click.IntRange(min=0), metavar="N", help="bytes of the tag")
@click.option("--decrypt", is_flag=True, help="decrypt or decompress")
@click.option("--module", metavar="MODULE", help="the module, where no alias names it")
@module_options
@modelled_option
@console_option
@sandbox_option
@unknown_option("fault")
@examples(
    "execmem crypto md4 str:abc --root TREE --arch arm64",
    "execmem crypto crc32c str:123456789 --root TREE",
    'execmem crypto "hmac(sha256)" str:abc --key str:secret --kernel VMLINUZ',
)
def crypto(
    algorithm: str,
    data: str,
    key: str | None,
    iv: str | None,
    associated: str,
    tag_size: int | None,
    decrypt: bool,
    module: str | None,
    **options: Any,
) -> None:
    """Hash, encrypt, compress or draw random numbers with a module's algorithm.

    DATA is str:TEXT, hex:BYTES or file:PATH; for a random number generator out:SIZE, and
    --key is its seed. The module is found under --root by its alias crypto-ALGORITHM.

    A booted kernel (--kernel) tests the algorithm itself first, and also has those that are
    built in and those that it makes of others, such as hmac(sha256).
    """
    from execmem import report
    from kernels.algorithms import compute

    given = _bytes(data)
    how: dict[str, Any] = {
        "key": None if key is None else _bytes(key),
        "iv": b"" if iv is None else _bytes(iv),
        "associated": _bytes(associated),
        "tag_size": tag_size,
        "decrypt": decrypt,
    }
    if boots(options):
        from execmem import booted

        params = parameters(options["params"])
        booted.crypto(algorithm, given, module, options=options, params=params, **how)
        return
    if module is None and options["root"] is None:
        raise click.UsageError(
            f"which module has {algorithm!r}? give --module FILE, or --root DIR, a folder with "
            f"lib/modules/VERSION, where the alias crypto-{algorithm} names it"
        )
    machine = machine_for(module or f"crypto-{algorithm}", options)
    click.get_current_context().call_on_close(lambda: report.print_missing(machine))
    if module is not None:
        load_one(machine, module, options, init=True)
    with machine.crypto(algorithm) as found:
        result = compute(found, given, **how)
    if options["as_json"]:
        record = found.record
        report.print_json(
            {
                "algorithm": record.name,
                "driver": record.fields["cra_driver_name"],
                "kind": record.kind,
                "module": record.owner,
                "arch": machine.arch.name,
                "models": machine.models,
                "result": result.hex(),
                "log": [line.text for line in machine.log],
                **report.missing(machine),
            }
        )
        return
    say(result.hex())


def _bytes(text: str) -> bytes:
    """Return the bytes that a word stands for."""
    value = argument(text)
    if isinstance(value, int):
        raise click.UsageError(f"{text!r} is no DATA: expected str:, hex:, file: or out:")
    return value.encode() if isinstance(value, str) else bytes(value)
