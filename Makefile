# SPDX-License-Identifier: GPL-2.0-or-later
# make demo and make test need Python 3.11+ and nothing else; both set up .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check docs samples oracle bench fuzz faults clean

demo: $(VENV)/.installed
	$(BIN)/execmem demo tour

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto --dist loadfile

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/python -m execmem.reference
	$(BIN)/mkdocs build --strict --site-dir build/site

# Needs gcc and binutils for the four architectures; see samples/modules/manifest.json.
samples: $(VENV)/.installed
	$(BIN)/python -m samples.modules.build

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "execmem needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[kernels,test]'
	touch $@

# ORACLE (a path list) names recordings of real kernels, CORPUS the files they leave out.
ORACLE ?= $(EXECMEM_ORACLE)
CORPUS ?= $(EXECMEM_CORPUS)
oracle: $(VENV)/.installed
	EXECMEM_ORACLE="$(ORACLE)" EXECMEM_CORPUS="$(CORPUS)" $(BIN)/execmem diff --placement

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.link
	$(BIN)/python -m benchmarks.load
	$(BIN)/python -m benchmarks.call
	$(BIN)/python -m benchmarks.looking
	$(BIN)/python -m benchmarks.sweep
	$(BIN)/python -m benchmarks.alloc --largest 100000
	$(BIN)/python -m benchmarks.workloads --runs 1
	$(BIN)/python -m benchmarks.checks
	$(BIN)/python -m benchmarks.poke
	$(BIN)/python -m benchmarks.startup

# SECONDS for each target; with ENGINE=coverage atheris chooses the inputs (extra fuzz).
SECONDS ?= 60
fuzz: $(VENV)/.installed
ifeq ($(ENGINE),coverage)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	for target in btf tables parse elf link load wrapper depends trace printf; do \
		$(BIN)/python -m tests.fuzz.run $$target --coverage --seconds $(SECONDS) || exit 1; done
else
	$(BIN)/python -m tests.fuzz.run --seconds $(SECONDS)
	$(BIN)/python -m tests.fuzz.code
endif

# Refuse every step of every operation under every design; make test does a part of it.
faults: $(VENV)/.installed
	EXECMEM_FAULTS=1 $(BIN)/python -m pytest -q tests/machine/test_injection.py tests/allocator/test_faults.py

clean:
	rm -rf $(VENV) build dist *.egg-info
