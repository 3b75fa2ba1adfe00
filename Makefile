# `make install` makes .venv/ in this folder and keeps it up to date with the sources.
#
#   PYTHON=python3.13   the interpreter (changing it makes .venv/ anew)
#   MPICC=/path/mpicc   an MPI of yours instead of the MPICH from PyPI
#   LAPSE_MPI=system    the first mpicc on PATH

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# What the environment was made with; another answer makes it anew.
CHOICE := $(shell $(PYTHON) -c 'import sys; print(sys.base_prefix, sys.version.split()[0])') \
          mpicc=$(MPICC) mpi=$(LAPSE_MPI)
EXTRAS := $(if $(MPICC)$(LAPSE_MPI),test,mpich,test)

# The list of pyproject.toml, without its MPI if another one was chosen.
BUILD_TOOLS := $(shell sed -n '/^\[build-system\]/,/^build-backend/s/^requires = \[\(.*\)\]/\1/p' pyproject.toml | tr -d ,)
ifneq ($(MPICC)$(LAPSE_MPI),)
BUILD_TOOLS := $(filter-out "mpich",$(BUILD_TOOLS))
endif

SOURCES := pyproject.toml setup.py find_mpi.py \
           $(shell find lapse -name '*.pyx' -o -name '*.pxd' -o -name '*.h')

PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help install demo test faults model histories soak sanitize slurm lint format bench clean
help:
	@echo 'make install   make .venv/ with Lapse, an MPI and the test tools; or bring it up to date'
	@echo 'make demo      train word2vec on 4 ranks on the documentation of this Python'
	@echo 'make test      run all tests, on one rank and under mpirun (make test ARGS="-k name")'
	@echo 'make model     explore every order of messages of small jobs, a million random ones (ARGS=--help)'
	@echo 'make histories find an order that explains what workers of 100 real jobs saw (ARGS=--help)'
	@echo 'make soak      every operation for 10 minutes: exact sums, and nothing may grow (ARGS=--help)'
	@echo 'make sanitize  the compiled code under gcc'"'"'s sanitizers, half an hour (ARGS=--quick, ARGS=--help)'
	@echo 'make faults    inject 200 random faults into short jobs (ARGS="--first 200", ARGS=--help)'
	@echo 'make slurm     run the batch scripts under a Slurm of two virtual nodes, 4 minutes (ARGS=--help)'
	@echo 'make lint      check style, spelling, types and the list of files of the source distribution'
	@echo 'make format    format the Python sources as make lint wants them'
	@echo 'make bench     measure this machine (make bench ARGS="local --json out.jsonl"; ARGS=--help)'
	@echo 'make clean     remove .venv/ and everything that was built'
	@echo
	@echo 'PYTHON=python3.13 chooses the interpreter, MPICC=/path/mpicc the MPI.'

install: $(STAMP)
	@echo "Lapse is installed in $(VENV); to use it: source $(BIN)/activate"

# A stamp with the choice in it; rewritten, hence newer, only when the choice is another one.
$(VENV)/.choice: FORCE
	@test "$$(cat $@ 2>/dev/null)" = "$(strip $(CHOICE))" || { \
	    echo "making $(VENV) with $(PYTHON)" && rm -rf $(VENV) && $(PYTHON) -m venv $(VENV) && \
	    echo "$(strip $(CHOICE))" > $@; }
FORCE:

# The tools of the build are installed first: a build in their own throw-away environment
# (pip's default) would download and start from nothing at every change.
$(VENV)/.tools: $(VENV)/.choice pyproject.toml
	$(PIP) install $(BUILD_TOOLS)
	@touch $@

$(STAMP): $(VENV)/.tools $(SOURCES)
	$(PIP) install --no-build-isolation --editable '.[$(EXTRAS)]'
	@touch $@

demo: install
	$(BIN)/python -m lapse.apps.word2vec.demo $(ARGS)

test: install
	$(BIN)/python tests/run.py $(ARGS)

STUBTEST := stubtest --concise --ignore-disjoint-bases --mypy-config-file pyproject.toml \
            --allowlist tests/stubtest-allowlist.txt --ignore-unused-allowlist
LINTERS := lint-ruff lint-format lint-cython lint-spelling lint-types lint-stubs lint-manifest

# The package is installed with them; `install`, which comes behind this in the lists below, has then nothing to do.
$(VENV)/.lint-tools: $(VENV)/.tools
	$(PIP) install --no-build-isolation --editable '.[$(EXTRAS),lint]'
	@touch $@ $(STAMP)

# As many tools at a time as there are cores; each runs, whatever the others found.
lint: $(VENV)/.lint-tools install
	@$(MAKE) --no-print-directory --keep-going --jobs=$$(nproc) --output-sync=target $(LINTERS)

.PHONY: $(LINTERS)
$(LINTERS): export PATH := $(CURDIR)/$(BIN):$(PATH)
lint-types: ; mypy
lint-stubs: ; $(STUBTEST) lapse
lint-manifest: ; check-manifest --no-build-isolation
lint-cython: ; cython-lint lapse tests
lint-spelling: ; codespell
lint-ruff: ; ruff check
lint-format: ; ruff format --check

format: $(VENV)/.lint-tools install
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

model: install
	$(BIN)/python tests/model.py $(ARGS)

histories: install
	$(BIN)/python tests/histories.py $(ARGS)

soak: install
	$(BIN)/python tests/soak.py $(ARGS)

slurm: install
	$(BIN)/python tests/slurm.py $(ARGS)

sanitize: install
	$(BIN)/python tests/sanitize.py $(ARGS)

faults: install
	$(BIN)/python tests/faults.py $(ARGS)

bench: install
	$(BIN)/python -m lapse bench $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info
	rm -f lapse/_build_info.py lapse/libmpi.so.*
	find lapse -name '*.so' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
