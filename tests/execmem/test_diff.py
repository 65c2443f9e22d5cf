# SPDX-License-Identifier: GPL-2.0-or-later
"""Our modules beside a real kernel's, and beside small made-up recordings."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest

import archs
from allocator.types import ExecmemType
from execmem.check.elfwriter import A, Rela, Sec, Sym, W, X, write
from execmem.cli import main
from execmem.diffing.diff import compare, compare_runs, predict
from loader.elf import parse
from loader.elfview import ElfView
from loader.layout import plan
from loader.recording import RecordedBoot, Recording, image_of, runs
from samples import modules as samples
from tests.archs.facts import facts
from tests.support import ld
from tests.support.addresses import place, resolve
from tests.support.recorder import Made, record

ARM64 = archs.arch("arm64")
TEXT, DATA = 0xFFFF_8000_7A00_0000, 0xFFFF_8000_7A01_0000
OPS, FAR = 0xFFFF_8000_8123_4568, TEXT + 0x1000
NOP, MOV_X9_LR, RET = 0xD503_201F, 0xAA1E_03E9, 0xD65F_03C0  # Arm ARM, C6.2


def words(*values: int) -> bytes:
    """Return little-endian words."""
    return b"".join(value.to_bytes(4, "little") for value in values)


def traced(name: str = "traced") -> Made:
    """Return an arm64 module of one function that can be traced, its bytes written by hand.

    Two NOPs in front become the address of the kernel's idle operations; the first NOP of
    the function becomes mov x9, x30. The branch to a function 0x1000 behind the section is
    bl with (0x1000 - 16) / 4 words.
    """
    code = [NOP, NOP, NOP, NOP, 0x9400_0000, RET]
    image = write(
        183,
        [
            Sec(".text", words(*code), A | X, align=8, relas=[Rela(16, 283, "far")]),
            Sec(
                "__patchable_function_entries",
                bytes(8),
                A | W,
                align=8,
                relas=[Rela(0, 257, ".text")],
            ),
        ],
        [Sym(".text", ".text", bind=0, type=3), Sym("f", ".text", 8, 16, type=2), Sym("far")],
    )
    relocated = words(*code[:4], 0x9400_03FC, RET)
    final = OPS.to_bytes(8, "little") + words(MOV_X9_LR, NOP, 0x9400_03FC, RET)
    return Made(
        name=name,
        image=image,
        addresses={1: TEXT, 3: DATA},
        symbols={"far": FAR},
        relocated={1: relocated, 3: TEXT.to_bytes(8, "little")},
        final={1: final},
        regions={"TEXT": (TEXT, 4096), "DATA": (DATA, 4096)},
    )


KALLSYMS = {"kallsyms.end.xz": f"{OPS:016x} D ftrace_nop_ops\n{FAR:016x} T far\n"}


def diff(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run the command; return the exit code and what it printed."""
    with pytest.raises(SystemExit) as done:
        main(["diff", *map(str, arguments), "--jobs", "1"])
    return int(done.value.code or 0), capsys.readouterr().out


def test_hand_written_bytes_are_predicted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Relocation and finalisation give the bytes that a person wrote down."""
    record(tmp_path / "arm64", [traced()], boot=KALLSYMS)
    code, out = diff("--oracle", tmp_path, "--json", capsys=capsys)
    (run,) = json.loads(out)["runs"]
    assert code == 0
    wanted = {"arch": "arm64", "run": "base", "modules": 1, "sections": 2, "bytes": 32}
    differing = ("reloc", "text", "rodata", "data")
    wanted |= {f"{kind}_bytes_differing": 0 for kind in differing} | {"unexplained": 0}
    assert {key: run[key] for key in wanted} == wanted
    before, after = traced().relocated[1], traced().final[1]
    changed = sum(a != b for a, b in zip(before, after, strict=True))
    assert run["mechanisms"] == {"ftrace": {"text": {"changed": changed, "differing": 0}}}


def test_a_difference_is_shown_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A byte that differs is named by section, symbol and mechanism, with both instructions."""
    module = traced()
    module.final = {1: module.final[1][:8] + words(NOP) + module.final[1][12:]}
    record(tmp_path / "arm64", [module], boot=KALLSYMS)
    code, out = diff("traced", "--oracle", tmp_path, capsys=capsys)
    assert code == 1
    assert "base traced: .text+0x8 (f+0x0), 4 bytes, final, ftrace" in out
    assert "ours   e9 03 1e aa  mov x9, x30" in out
    assert "kernel 1f 20 03 d5  nop" in out
    code, out = diff("traced", "--oracle", tmp_path, "--json", capsys=capsys)
    (found,) = json.loads(out)["runs"][0]["differences"]
    assert (code, found["kernel_text"], found["mechanism"]) == (1, "nop", "ftrace")


def test_a_wrong_relocation_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After relocation the type of the relocation that wrote the bytes stands for a mechanism."""
    module = traced()
    module.symbols = {"far": FAR + 8}
    record(tmp_path / "arm64", [module], boot=KALLSYMS)
    code, out = diff("traced", "--oracle", tmp_path, capsys=capsys)
    assert code == 1
    assert "traced: .text+0x10 (f+0x8), 4 bytes, relocated, R_AARCH64_CALL26" in out
    assert f"ours   fe 03 00 94  bl #{FAR + 8:#x}" in out
    assert f"kernel fc 03 00 94  bl #{FAR:#x}" in out


def test_a_refused_module_is_a_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What execmem cannot link at the kernel's addresses is reported, and is not equal."""
    module = traced()
    module.symbols = {"far": FAR + (1 << 28)}
    record(tmp_path / "arm64", [module], boot=KALLSYMS)
    code, out = diff("--oracle", tmp_path, "--json", capsys=capsys)
    (run,) = json.loads(out)["runs"]
    assert (code, run["modules"]) == (1, 0)
    assert "R_AARCH64_CALL26" in run["skipped"][0]["reason"]


def test_only_a_hash_counts_the_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without raw bytes an equal section is equal, and one that differs counts whole."""
    record(tmp_path / "arm64", [traced()], boot=KALLSYMS, raw=False)
    assert diff("--oracle", tmp_path, capsys=capsys)[0] == 0
    module = traced()
    module.final = {1: module.final[1][:-1] + b"\0"}
    record(tmp_path / "arm64", [module], boot=KALLSYMS, raw=False)
    code, out = diff("--oracle", tmp_path, "--json", capsys=capsys)
    (run,) = json.loads(out)["runs"]
    assert (code, run["text_bytes_differing"], run["sections_known_by_hash_only"]) == (1, 24, 1)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda m: m.symbols.update(far=FAR + 4), "reloc_bytes_differing"),
        (lambda m: m.addresses.update({1: TEXT + 16}), "reloc_bytes_differing"),
        (lambda m: m.addresses.update({3: DATA + 8}), "sections_laid_out_differently"),
    ],
)
def test_moving_one_thing_is_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change, where
) -> None:
    """A symbol or a section that stands elsewhere makes the comparison fail."""
    module = traced()
    change(module)
    record(tmp_path / "arm64", [module], boot=KALLSYMS)
    code, out = diff("--oracle", tmp_path, "--json", capsys=capsys)
    assert code == 1
    assert json.loads(out)["runs"][0][where] > 0


def test_leaving_out_a_mechanism_is_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the tracer's mechanism its bytes differ, and nobody explains them."""
    record(tmp_path / "arm64", [traced()], boot=KALLSYMS)
    code, out = diff("--oracle", tmp_path, "--without", "ftrace", "--json", capsys=capsys)
    (run,) = json.loads(out)["runs"]
    assert (code, run["unexplained"]) == (1, run["text_bytes_differing"])
    assert run["unexplained"] > 8


def test_a_missing_file_is_skipped_with_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A module whose file is left out is reported, unless a tree has it."""
    module = traced()
    record(tmp_path / "arm64", [module], boot=KALLSYMS, files=False)
    code, out = diff("--oracle", tmp_path, "--json", capsys=capsys)
    (run,) = json.loads(out)["runs"]
    assert (code, run["modules"]) == (0, 0)
    assert run["skipped"][0]["module"] == "traced"
    assert "--root" in run["skipped"][0]["reason"]
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "traced.ko").write_bytes(module.image)
    options = ("--oracle", tmp_path, "--root", tmp_path / "tree", "--json")
    assert json.loads(diff(*options, capsys=capsys)[1])["runs"][0]["modules"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nonesuch"], "nonesuch"),
        (["--run", "nonesuch"], "no such recording"),
        (["--arch", "vax"], "vax"),
        (["--without", "magic"], "expected one of"),
    ],
)
def test_bad_usage_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options, message
) -> None:
    """What does not exist is named; the exit code is that of usage."""
    record(tmp_path / "arm64", [traced()], boot=KALLSYMS)
    with pytest.raises(SystemExit) as done:
        main(["diff", "--oracle", str(tmp_path), *options])
    assert done.value.code == 2
    assert message in capsys.readouterr().err


def test_sample_modules_are_what_gnu_ld_makes(arch: archs.Arch, tmp_path: Path) -> None:
    """Sample modules recorded with ld's bytes, with nothing to finalise, do not differ."""
    start = arch.loads.address_map().range_of(ExecmemType.MODULE_TEXT).range.start
    made = []
    for name in samples.names():
        image = samples.path(arch.name, name).read_bytes()
        view = parse(image)
        layout = plan(view)
        addresses = place(layout, start)
        symbols = resolve(view, arch.loads.address_map().image.start)
        linked = ld.link(image, addresses, symbols, tmp_path).sections
        own = facts(arch).link.rewritten  # by ld for itself
        kept = {i: bytes(view.contents(s)) for i, s in enumerate(view.sections) if s.name in own}
        linked = {**linked, **kept}
        sizes = {index: layout.size_of(view.sections[index]) for index in addresses}
        relocated = {i: linked.get(i, bytes(size)) for i, size in sizes.items()}
        made.append(
            Made(name=name, image=image, addresses=addresses, symbols=symbols, relocated=relocated)
        )
    record(tmp_path / arch.name, made)
    (run,) = compare_runs(list(runs(tmp_path)))
    assert run.total("relocated") == 0


# Real kernels ----------------------------------------------------------------------------------


def of(oracle: Path, name: str, module: str) -> tuple[RecordedBoot, Recording, bytes]:
    """Return a recorded module of a run, or skip."""
    for run in runs(oracle, (name,)):
        for recording in run.recordings:
            image = image_of(recording) if recording.name == module else None
            if image is not None:
                return run, recording, image
    pytest.skip(f"no recording of {module} in {name}")


def test_text_and_rodata_equal_the_kernels(oracle: Path, corpus: Path) -> None:
    """In every boot, relocation, text and read-only data are the kernel's; data is explained."""
    found = compare_runs(list(runs(oracle)), trees=(corpus,), jobs=2)
    assert found
    for run in found:
        assert (run.total("relocated"), run.differing("text"), run.differing("rodata")) == (0, 0, 0)
        assert run.unexplained == 0, run.counts("differing")
        assert run.equal
        assert len(run.compared) > 40
        unknown = {m for (_, m), n in run.counts("differing").items() if n}
        assert unknown <= {"running_kernel"}


# kvm's static calls are what the init of the module before, of the other vendor, made them; and
# without kvm's file nobody knows them at all.
OF_A_RUNNING_KVM = {"kvm_amd", "kvm_intel"}


def test_other_kernels_bytes(other_recordings: dict[str, Path]) -> None:
    """What kernels of other versions made of their modules, at both points, is what we make."""
    compared = 0
    for folder in other_recordings.values():
        for run in compare_runs(list(runs(folder)), jobs=2):
            compared += len(run.compared)
            assert run.kernel
            assert (run.total("relocated"), run.total("refused")) == (0, 0)
            for module in run.compared:
                assert not module.laid_out, (run.title, module.name)
                wrong = {
                    mechanism: count
                    for (kind, mechanism), count in module.differing.items()
                    if kind != "data" and not (mechanism == "" and module.hashed)
                }
                assert not wrong or module.name in OF_A_RUNNING_KVM, (run.title, module.name)
                unknown = module.differing.get(("data", ""), 0)
                assert not unknown or module.hashed, (run.title, module.name)
    assert not other_recordings or compared


def test_every_mechanism_matters(oracle: Path) -> None:
    """Leaving out any mechanism that changes a module makes the comparison fail."""
    run, recording, image = of(oracle, "base", "sunrpc")
    view = parse(image)
    whole = compare(recording, predict(recording, view, run.environment))
    assert {name for _, name in whole.differing} <= {"running_kernel"}
    for mechanism in {name for (_, name), count in whole.changed.items() if count}:
        left = compare(recording, predict(recording, view, run.environment, without=(mechanism,)))
        assert any(not name for _, name in left.differing), mechanism


def test_one_feature_matters(oracle: Path) -> None:
    """There is a feature of the CPU without which text differs: the search halves the set."""
    (run,) = runs(oracle, ("base",))

    def differs(recording: Recording, view: ElfView, dropped: list[str]) -> bool:
        features = run.environment.features - set(dropped)
        environment = attrs.evolve(run.environment, features=features)
        found = compare(recording, predict(recording, view, environment))
        return any(kind == "text" for kind, _ in found.differing)

    tables = {".altinstructions", ".alternative"}
    for recording in sorted(run.recordings, key=lambda r: sum(s.size for s in r.sections)):
        image = image_of(recording) if tables & {s.name for s in recording.sections} else None
        view = parse(image) if image is not None else None
        features = sorted(run.environment.features)
        if view is None or not differs(recording, view, features):
            continue
        while len(features) > 1:
            half = features[: len(features) // 2]
            features = half if differs(recording, view, half) else features[len(half) :]
        assert differs(recording, view, features), features
        return
    pytest.fail("no feature matters to any module")


def test_moving_a_symbol_is_seen(oracle: Path) -> None:
    """One undefined symbol a byte further on makes a real module differ after relocation."""
    run, recording, image = of(oracle, "base", "sunrpc")
    name = next(iter(recording.symbols))
    moved = attrs.evolve(
        recording, symbols={**recording.symbols, name: recording.symbols[name] + 4}
    )
    found = compare(moved, predict(moved, parse(image), run.environment))
    assert found.relocated > 0
