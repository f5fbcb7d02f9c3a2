# Everything a newcomer needs: `make demo` and `make test`. Both do their own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test chaos fuzz install check format lint types reference docs screenshots clean help

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.runtime  ## two years of real invoices through the whole loop (EXIT=1 ends after the summary)
	@$(BIN)/shelflife demo $(if $(EXIT),--exit)

test: $(VENV)/.development  ## the test suite, a file at a time on each core
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

chaos: $(VENV)/.development  ## kills, races, full disks, long locks, flipped bits (an hour)
	@SHELFLIFE_CHAOS=1 $(BIN)/python -m pytest tests/chaos tests/retrain/test_machine.py tests/serving/test_challenger.py tests/serving/test_backends.py tests/alert/test_kill.py --log-cli-level=INFO $(ARGS)

fuzz: $(VENV)/.development  ## the ways in against generated and damaged requests (half an hour)
	@FUZZ_EXAMPLES=10000 SCHEMATHESIS_EXAMPLES=200 $(BIN)/python -m pytest tests/web/test_decoders.py tests/web/test_document.py $(ARGS)

install: $(VENV)/.development  ## the set-up alone

check: format lint types test  ## what CI runs

format: $(VENV)/.development
	@$(BIN)/ruff format --check .

lint: $(VENV)/.development
	@$(BIN)/ruff check .

types: $(VENV)/.development
	@$(BIN)/mypy

reference: $(VENV)/.development  ## docs/reference, from the code
	@$(BIN)/python docs/reference.py

docs: $(VENV)/.development  ## the documentation as a site in site/; a broken link fails
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

screenshots: $(VENV)/.development  ## real screenshots of every page, after a demo, into docs/images
	@$(BIN)/python docs/screenshots.py

clean:  ## forget the environment and the demo
	rm -rf $(VENV) .demo

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("shelflife needs Python 3.11 or newer, this is %d.%d; say make PYTHON=python3.11" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "setting up $(VENV) (a few minutes when packages have to be downloaded)"
	@$(PIP) install --constraint constraints.txt --upgrade pip
	@$(PIP) install --constraint constraints.txt --editable ".[postgres]"
	@touch $@

$(VENV)/.development: $(VENV)/.runtime
	@$(PIP) install --constraint constraints.txt --group dev
	@# Triton Inference Server lies in this wheel, which pins numpy < 2 for a Python side we do not use.
	@$(PIP) install --no-deps nvidia-pytriton==0.7.0 || echo "no Triton server for this platform: its tests skip"
	@touch $@
