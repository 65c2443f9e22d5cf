# SPDX-License-Identifier: GPL-2.0-or-later
"""`execmem course`: a file to work on, a verdict from a process that can do no harm, progress."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from allocator.errors import ExecmemError
from execmem import coursework
from execmem.cli import main
from samples.course.task import LONGEST
from samples.course.tasks import TASKS
from tests.execmem.test_documents import check, documents

SOLUTIONS = Path(__file__).parents[2] / "docs" / "solutions"


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    """Work in an empty folder, with no progress."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def run(capsys):
    """Run the command line; return exit code, stdout and stderr."""

    def call(*words):
        with pytest.raises(SystemExit) as done:
            main(["course", *map(str, words)])
        return (done.value.code or 0, *capsys.readouterr())

    return call


def test_a_task_from_the_template_to_a_pass(run, capsys):
    """New, a hint, a check that fails with numbers, one that passes, and the list that knows it."""
    code, out, _ = run("new", "one-plt")
    assert (code, "execmem course check one-plt.toml" in out) == (0, True)
    assert run("new", "one-plt")[0] == 1  # what is there is not lost
    code, out, _ = run("hint", "one-plt")
    assert (code, out.startswith("Hint 1 of 3: ")) == (0, True)
    assert run("hint", "one-plt", "--number", "4")[0] == 2
    code, out, _ = run("check", "one-plt.toml")
    assert code == 1
    assert "PLT entries used     0      1" in out
    assert "Passed: 0 of" in run()[1]
    shutil.copy(SOLUTIONS / "one-plt-arm64.toml", "one-plt.toml")
    code, out, err = run("check", "one-plt.toml")
    assert (code, err) == (0, "")
    assert "score: 31,745 pages moved (best known: 31,745)" in out
    assert "Passed: 1 of" in run()[1]
    (found,) = documents(capsys, "course", "--json")
    (task,) = [each for each in found["tasks"] if each["name"] == "one-plt"]
    assert task["archs"]["arm64"]["passed"] is True
    assert task["archs"]["arm64"]["score"] == 31745
    assert max(map(len, run()[1].splitlines())) <= 80


def test_documents_are_as_documented(capsys):
    """All that programs read has its keys in the schema, and the page's texts are the files'."""
    (found,) = documents(capsys, "course", "--json")
    check("course", found)
    assert [each["name"] for each in found["tasks"]] == list(TASKS)
    for task in found["tasks"]:
        for name, each in task["archs"].items():
            assert each["template"] == TASKS[task["name"]].file(TASKS[task["name"]].arch(name))
    (found,) = documents(capsys, "course", "new", "churn", "--arch", "riscv64", "--json")
    check("course, new", found)
    assert Path(found["file"]).read_text("utf-8").startswith('# task = "churn"\n# arch = "riscv64"')
    check("course, hint", *documents(capsys, "course", "hint", "churn", "--json"))
    solutions = [str(SOLUTIONS / f"{name}.toml") for name in ("load-order-arm64", "window-arm64")]
    (found,) = documents(capsys, "course", "check", *solutions, "--json")
    check("course, check", found)
    assert [each["passed"] for each in found["verdicts"]] == [True, True]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["newer"], 2, "no action"),
        (["new"], 2, "of which task?"),
        (["check"], 2, "of which file?"),
        (["new", "one-plt", "churn"], 2, "one task at a time"),
        (["new", "one-pit"], 1, "did you mean one-plt"),
        (["new", "one-plt", "--arch", "x86_64"], 1, "not for x86_64"),
        (["new", "one-plt", "--arch", "vax"], 1, "vax"),
        (["hint", "nonesuch"], 1, "no task"),
        (["check", "missing.toml"], 1, "missing.toml: No such file"),
        (["check", "."], 1, "Is a directory"),
    ],
)
def test_what_is_wrong_is_one_line(run, words, code, said):
    """Names, architectures and files that are none."""
    found, out, err = run(*words)
    assert (found, out) == (code, "")
    assert said in err.splitlines()[-1]


# Answers that nobody trusts ---------------------------------------------------------------------

HEAD = '# task = "churn"\n# arch = "riscv64"\n'


def checked(text):
    """Return the verdict on a design that says this, or why there is none."""
    Path("mine.py").write_text(HEAD + text)
    try:
        return coursework.check("mine.py")
    except ExecmemError as error:
        return str(error)


def test_an_answer_has_no_network_and_no_files(tmp_path):
    """What an answer reads is its own file; nothing is written, nobody is called."""
    secret = tmp_path / "secret"
    secret.write_text("a secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = checked(
            f"import socket\n"
            f"said = []\n"
            f"for what in (lambda: open({str(secret)!r}).read(),\n"
            f"             lambda: open({str(tmp_path / 'made')!r}, 'w'),\n"
            f"             lambda: socket.create_connection(('127.0.0.1', {port}))):\n"
            f"    try:\n"
            f"        what()\n"
            f"        said.append('done')\n"
            f"    except OSError as error:\n"
            f"        said.append('refused')\n"
            f"raise ValueError(' '.join(said))\n"
        )
    assert isinstance(found, str)
    if "done" in found:
        pytest.skip("this host's kernel keeps no process from files")
    assert "refused refused refused" in found
    assert not (tmp_path / "made").exists()


def test_an_answer_that_ends_its_process_costs_one_answer():
    """It dies, it says what it should not, it takes too long: one line each, and the next is graded."""
    assert "was not graded: the worker died" in checked("import os\nos._exit(3)\n")
    forged = (
        "import os, sys, json, struct\n"
        "text = json.dumps({'task': 'churn', 'arch': 'riscv64', 'score': -1, 'checks': []}).encode()\n"
        "os.write(int(sys.argv[1]), struct.pack('!i', len(text)) + text)\n"
    )
    assert "what is no verdict" in checked(forged)
    assert coursework.check(str(SOLUTIONS / "load-order-arm64.toml"))["passed"]


def test_an_answer_that_never_ends_is_given_up(monkeypatch):
    """After its time."""
    monkeypatch.setattr(coursework, "SECONDS", 2.0)
    assert "was not graded" in checked("while True:\n    pass\n")


def test_a_wrong_design_is_told_what_it_owes():
    """Text that stays writable is found by looking at the page table, and named."""
    found = checked(
        "from allocator.designs import Vmalloc\n"
        "class Mine(Vmalloc):\n"
        "    name = 'mine'\n"
        "    def places(self, request):\n"
        "        return iter(())\n"
    )
    assert not found["passed"]
    (wrong,) = [each for each in found["checks"] if "refused" in each["what"]]
    assert int(wrong["found"].partition(",")[0]) > 100
    found = checked(
        "from allocator.designs import Vmalloc\n"
        "class Mine(Vmalloc):\n"
        "    name = 'mine'\n"
        "    def places(self, request):\n"
        "        return [1 / 0]\n"
    )
    assert not found["passed"]
    assert "ZeroDivisionError" in found["checks"][0]["found"]


# Progress ---------------------------------------------------------------------------------------


def test_progress_survives_what_it_finds(run, tmp_path):
    """A file that is no progress counts as none; where none can be kept, that is said."""
    file = coursework.progress_file()
    file.parent.mkdir(parents=True)
    for text in ("", "[]", "{", '{"one-plt": 3}', '{"one-plt": {"vax": 1}, "nonesuch": {}}'):
        file.write_text(text)
        assert coursework.progress() == {}
    file.write_text('{"one-plt": {"arm64": 40000}}')
    coursework.keep({"task": "one-plt", "arch": "arm64", "score": 50000, "passed": True})
    assert coursework.progress() == {"one-plt": {"arm64": 40000}}
    coursework.keep({"task": "one-plt", "arch": "arm64", "score": 31745, "passed": True})
    assert json.loads(file.read_text())["one-plt"] == {"arm64": 31745}
    shutil.rmtree(tmp_path / "state")
    (tmp_path / "state").write_text("a file where a folder should be")
    code, _, err = run("check", SOLUTIONS / "one-plt-arm64.toml")
    assert code == 0
    assert "progress is not kept" in err


def test_answers_are_bounded(run):
    """A file that is too large is not read to its end."""
    Path("large.toml").write_text("#" * (LONGEST + 1))
    os.mkfifo("pipe.toml")
    for name in ("large.toml", "pipe.toml"):
        code, _, err = run("check", name)
        assert (code, err.count("\n")) == (1, 1)
