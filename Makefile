# make pretrain   the demo: raw text to a pre-trained discriminator, nothing else needed
# make test       linters, types and all quick tests; CI runs exactly this
# make bench      FLOPs, memory and speed beside every joint rival's: runs/bench/report.md
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)
# torch first and by itself: a CPU machine then never fetches the CUDA packages of a newer one
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: setup pretrain check test slow bench format clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,report]'
	touch $@

pretrain: setup
	deepspeed launchers/pretrain.py --deepspeed ds_configs/zero3.json

check: setup
	ruff check .
	ruff format --check .
	mypy

test: check
	pytest -m "not slow"

slow: setup
	pytest -m slow

bench: setup
	python -m benchmarks.measure
	python -m benchmarks.report

format: setup
	ruff format .
	ruff check --fix .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
