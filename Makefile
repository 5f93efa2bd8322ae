# The two that matter:  make demo   make test
# Needs Python >= 3.11 with venv, and pip. Everything goes into .venv; nothing else on this machine is changed.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
SHELL  := bash
.SHELLFLAGS := -o pipefail -c
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/restow-setup
# the tests start hundreds of processes: what they import is compiled once, whatever the environment says
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(PY) -m pytest -p no:cacheprovider -q
DEMO   ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check rewrite clean

help:      ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)   ## make .venv and install everything, pinned; instant when nothing changed

$(STAMP): pyproject.toml constraints.txt
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "setup: Python '$(PYTHON)' is not there or older than 3.11; say make setup PYTHON=/path/to/python"; exit 1; }
	@echo "setup 1/3: $(VENV) with $$($(PYTHON) --version)"
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) \
		|| { echo "setup: python -m venv failed; on Debian and Ubuntu: apt install python3-venv"; rm -rf $(VENV); exit 1; }
	@echo "setup 2/3: installing restow and its packages at the versions of constraints.txt (minutes the first time; torch and ray are big)"
	@$(PY) -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[dev,lab,demo]' 2>&1 \
		| tee $(VENV)/pip.log | awk -v each=$$([ -t 1 ] && echo 1 || echo 25) -v end=$$([ -t 1 ] && printf '\\r' || printf '\\n') "$$PIP_PROGRESS" \
		|| { tail -20 $(VENV)/pip.log; echo "setup: pip could not install everything; all it said is in $(VENV)/pip.log"; exit 1; }
	@echo "setup 3/3: trying it"
	@$(PY) -c 'import torch, ray, sys; print(f"setup done: Python {sys.version.split()[0]}, torch {torch.__version__}, ray {ray.__version__}")'
	@touch $@

# One line that is rewritten on a terminal, else one for every 25 packages.
define PIP_PROGRESS
/^Collecting / && ++found % each == 0 { printf "  %d packages found, at %-40s%s", found, $$2, end; fflush() }
/^Installing collected/ { printf "  %d packages found, installing them %-20s\n", found, ""; fflush() }
endef
export PIP_PROGRESS

demo: setup   ## the demo, under two minutes (make demo DEMO="--picture demo.png")
	@$(VENV)/bin/restow demo $(DEMO)

test: setup   ## fast and live tests
	@$(PYTEST) -m "not slow" --session-timeout=2700

test-all: setup   ## everything, also what is slow
	@$(PYTEST)

check: setup   ## ruff and mypy
	@$(PY) -m ruff check src tests examples bench
	@$(PY) -m mypy

rewrite: setup   ## renew the transcripts in tests/scenarios; read the diff
	@REWRITE=1 $(PYTEST) tests/scenarios

clean:     ## remove .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info src/*.egg-info
