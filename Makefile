# SPDX-License-Identifier: GPL-2.0-or-later
# make demo and make test need Python 3.11+ and nothing else; both set up .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check docs samples oracle bench clean

demo: $(VENV)/.installed
	$(BIN)/execmem demo tour

test: $(VENV)/.installed
	$(BIN)/python -m pytest

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[docs]'
	$(BIN)/python -m execmem.reference
	$(BIN)/mkdocs build --strict --site-dir build/site

# Needs gcc and binutils for the three architectures; see samples/modules/manifest.json.
samples: $(VENV)/.installed
	$(BIN)/python -m samples.modules.build

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "execmem needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[zstd,test]'
	touch $@

# ORACLE (or EXECMEM_ORACLE) names recordings of real kernels, CORPUS the files they leave out.
ORACLE ?= $(EXECMEM_ORACLE)
CORPUS ?= $(EXECMEM_CORPUS)
oracle: $(VENV)/.installed
	$(BIN)/execmem diff --placement --oracle "$(ORACLE)" $(if $(CORPUS),--root "$(CORPUS)")

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.link
	$(BIN)/python -m benchmarks.alloc
	$(BIN)/python -m benchmarks.call

clean:
	rm -rf $(VENV) build dist *.egg-info
