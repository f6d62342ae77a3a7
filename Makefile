# make serve | make test | make lint: each sets up .venv from nothing first. make tools: what tests run beside it.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Tests that lack one of these are skipped, and say so; likewise without kubectl (1.22 or newer, not in Debian 12).
TOOLS := prometheus docker-compose binutils

.PHONY: serve test lint tools clean
.DEFAULT_GOAL := serve

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[models,embedded,report,dev,bench]'
	touch $@

serve: $(STAMP)
	$(BIN)/vitrine up

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# On Debian, as root.
tools:
	which promtool docker-compose strip >/dev/null || { apt-get update --quiet=2 \
		&& DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 --no-install-recommends \
			-o DPkg::Lock::Timeout=300 $(TOOLS); }

clean:
	rm -rf $(VENV)
