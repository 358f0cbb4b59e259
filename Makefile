# Everything a person runs, with the environment made on the way. PYTHON=python3.12 picks another.
PYTHON ?= python3
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
LOCK := pyproject.toml --universal --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command "make lock"
export PATH := $(CURDIR)/$(BIN):$(PATH)

# What Ctrl-C is the way to end: in a terminal it gets a process group of its own, or make would die of it too.
UNTIL_CTRL_C = @[ ! -t 0 ] || set -m; $(1) || [ $$? -eq 130 ]
# MLflow's queue for jobs of its own, which evaluate language models: two processes less, and no traceback at Ctrl-C.
NO_JOBS = MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false

.PHONY: help repro data tune-workers test lint audit bench ui demo send faults lock clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

repro: .venv/.repro  ## make the environment and run the pipeline
	dvc repro

data: .venv/.repro  ## download the faces from Kaggle, into data/; DATASET=owner/name downloads that set
	python -m emotion_detection.download $(if $(DATASET),--dataset $(DATASET))

tune-workers: .venv/.repro  ## search in N=2 processes at once, as tune.workers does
	dvc exp run -S tune.workers=$(or $(N),2) tune

test: .venv/.dev  ## make the environment and run the tests
	python -m pytest

lint: .venv/.dev  ## format check, lint and types
	ruff format --check .
	ruff check .
	mypy

bench: .venv/.extras  ## measure the speed, into docs/benchmarks.md; SOURCE=archive.zip measures on that
	python -m benchmarks $(if $(SOURCE),--source $(SOURCE))

audit: .venv/.dev  ## look up what is pinned among known vulnerabilities
	python .ci/audit.py

ui: .venv/.repro  ## browse the runs, at http://127.0.0.1:5000
	$(call UNTIL_CTRL_C,$(NO_JOBS) mlflow ui --host 127.0.0.1 --port 5000)

demo: .venv/.repro  ## label the faces in photos on a page; MODEL=models/model.keras, PORT=5002
	$(call UNTIL_CTRL_C,emotion-detection demo $(if $(MODEL),--model $(MODEL)) $(if $(PORT),--port $(PORT)))

send: .venv/.repro  ## send MLflow what it missed while it was away
	python -m emotion_detection.send

faults: .venv/.extras  ## kill every stage at random moments, and compare with an unbroken run
	python -m benchmarks.faults

lock:  ## resolve requirements*.txt anew, with uv
	uv pip compile $(LOCK) --output-file requirements.txt
	uv pip compile $(LOCK) --extra onnx --extra scale --constraint requirements.txt --output-file requirements-extras.txt
	uv pip compile $(LOCK) --extra onnx --extra scale --extra dev --constraint requirements-extras.txt --output-file requirements-dev.txt

clean:  ## remove the environment
	rm -rf .venv

.venv/.repro: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit(f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.extras: requirements-extras.txt .venv/.repro
	python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-extras.txt
	@touch $@

.venv/.dev: requirements-dev.txt .venv/.repro
	python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@
