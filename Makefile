# Needs Python >= 3.11 with venv, and nothing else; no environment has to be active.
#   make demo                          from a fresh clone to a real model's hidden states in words
#   make test                          the whole test suite, real-model tests included
#   make setup PYTHON=/path/to/python  another interpreter than the one found

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PEERS := .venv-peers
PEERS_STAMP := $(PEERS)/.installed
PYTHON ?=
CANDIDATES := $(PYTHON)
ifeq ($(strip $(PYTHON)),)
CANDIDATES := python3 python3.13 python3.12 python3.11 python3.14 python
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-asan check fix bench bench-quick bench-peers clean

help:
	@echo "make demo    inspect a real model's hidden states (sets up first)"
	@echo "make test    the whole test suite (sets up first)"
	@echo "make test-asan   the kernels' tests with AddressSanitizer, where there is GCC on Linux"
	@echo "make check   format, lint, types, floors, size budget"
	@echo "make fix     format, and mend what ruff can mend"
	@echo "make bench   speed and memory, beside other ways and what the machine can do: 15 quiet minutes"
	@echo "             (bench-quick: 2 minutes; bench-peers: only set up $(PEERS), what we are compared with)"
	@echo "make setup   only set up $(VENV)"
	@echo "make clean   remove $(VENV), $(PEERS) and caches; pulled models stay"

setup: $(STAMP)

demo: $(STAMP)
	@$(VENV)/bin/patchscopes demo

# A worker is given whole files, whose fixtures are shared, in the order that tests/conftest.py gives them.
test: $(STAMP)
	@OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# A kernel built with AddressSanitizer and UndefinedBehaviorSanitizer beside the usual one, and the first fault ends it.
test-asan: $(STAMP)
	@OMP_NUM_THREADS=1 $(PY) tests/asan.py

check: $(STAMP)
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports --no-logo
	@$(PY) -m pytest --quiet tests/test_house.py

fix: $(STAMP)
	@$(VENV)/bin/ruff check --fix-only .
	@$(VENV)/bin/ruff format .

bench: $(STAMP) bench-peers
	@$(PY) -m bench

bench-quick: $(STAMP) bench-peers
	@$(PY) -m bench --quick

# What we are compared with gets an environment of its own, and the bench does without where that cannot be made. The
# stamp is a copy of what was asked for.
bench-peers: $(STAMP)
	@if cmp -s bench/peers-requirements.txt $(PEERS_STAMP) && $(PEERS)/bin/python -c '' 2>/dev/null; then exit 0; fi; \
	echo "Setting up $(PEERS), for comparison (once; some minutes)"; \
	$(PY) -m venv --clear $(PEERS) \
	    && $(PEERS)/bin/python -m pip install --quiet --quiet --disable-pip-version-check --no-input \
	        -c constraints.txt -r bench/peers-requirements.txt \
	    && cp bench/peers-requirements.txt $(PEERS_STAMP) \
	    || { rm -rf $(PEERS); echo "make: $(PEERS) could not be set up; the bench runs without it" >&2; }

clean:
	rm -rf $(VENV) $(PEERS) .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# An interpreter must run (a pyenv shim may not), be new enough, and be able to make an environment with pip in it
# (Debian splits that off into python3-venv). The stamp is written last, so an interrupted setup is taken up again.
# The version that pip records stands in __init__.py. The stamp says where the environment was made, since scripts in it
# name that folder and so do not survive a move of the clone.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif
$(STAMP): pyproject.toml constraints.txt src/patchscopes/__init__.py
	@found=""; seen=""; without_venv=""; \
	for candidate in $(CANDIDATES); do \
	    version=$$("$$candidate" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue; \
	    seen="$$seen $$candidate ($$version)"; \
	    "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || continue; \
	    if "$$candidate" -c 'import ensurepip, venv' 2>/dev/null; then found="$$candidate"; break; fi; \
	    without_venv="$$candidate"; \
	done; \
	if [ -z "$$found" ] && [ -n "$$without_venv" ]; then \
	    echo "make: $$without_venv cannot make a virtual environment: its venv or ensurepip module is missing." >&2; \
	    echo "make: install them (on Debian or Ubuntu: the package $$without_venv-venv), then try again." >&2; \
	    exit 1; \
	elif [ -z "$$found" ]; then \
	    echo "make: Python 3.11 or newer is needed; found:$${seen:- none}." >&2; \
	    echo "make: install one, or name it: make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	fi; \
	echo "Setting up $(VENV) with Python $$("$$found" -c 'import platform; print(platform.python_version())')" \
	    "(once; PyTorch makes it large, so this can take some minutes)"; \
	{ $(VENV)/bin/pip --version && $(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; } >/dev/null 2>&1 \
	    || "$$found" -m venv --clear $(VENV)
	@if [ -t 1 ]; then quiet=""; else quiet="--quiet --quiet"; fi; \
	$(PY) -m pip install $$quiet --disable-pip-version-check --no-input -c constraints.txt -e '.[dev]'
	@pwd -P > $(STAMP)
	@echo "$(VENV) is ready"
