# make pretrain   the demo: raw text to a pre-trained discriminator, nothing else needed
# make test       linters, types and all quick tests; CI runs exactly this
# make slow       long tests that `make test` leaves out
# make survive    kills, preemption, other process counts: the long proofs, and a table of what held: runs/survive.md
# make study      does it learn as well: every arm pre-trained and judged, for hours; goes on where it was
# make slurm      the job scripts on a real SLURM of two hosts on this machine; as root, installs it from Debian first
# make bench      FLOPs, memory and speed beside every joint rival's: runs/bench/report.md
# make page       the committed page, benchmarks/results/report/report.md, anew from the committed rows
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)
# torch first and by itself: a CPU machine then never fetches the CUDA packages of a newer one
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: setup pretrain check test slow survive slurm bench page study format clean

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
	OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile -m "not slow and not survive"

slow: setup
	pytest -m slow

survive: setup
	OMP_NUM_THREADS=1 pytest -n 2 --dist worksteal -m survive

slurm: setup
	tests/slurm/install.sh
	pytest tests/test_slurm.py tests/test_slurm_cluster.py

REPLAY_TEXT ?= data/wiki
REPLAY_AUXILIARY ?= runs/aux/export
REPLAY_CASE ?= small/frozen/128/16000/masked/16
bench: setup
	python -m benchmarks.measure
	python -m benchmarks.replay
	test ! -d $(REPLAY_AUXILIARY) || python -m benchmarks.replay $(REPLAY_CASE) --corpus $(REPLAY_TEXT) --auxiliary $(REPLAY_AUXILIARY)
	python -m benchmarks.report

page: setup
	python -m benchmarks.report --output benchmarks/results/report --mixed_code \
	    --rows $(wildcard benchmarks/results/cpu_*.jsonl benchmarks/results/gpu_*.jsonl)

STUDY_TEXT ?= data/wikipedia/AA.txt.xz
BLIMP ?= data/blimp
study: setup
	test -d data/study || python launchers/prepare_corpus.py --input $(STUDY_TEXT) --vocab_size 4096 --output data/study
	python -m benchmarks.quality --corpus data/study --blimp $(BLIMP) $(if $(GLUE),--glue $(GLUE))

format: setup
	ruff format .
	ruff check --fix .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
