# The project's commands. Each makes the environment that it needs; PYTHON=python3.12 picks another.
PYTHON ?= python3
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
LOCK := pyproject.toml --universal --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command "make lock"
export PATH := $(CURDIR)/$(BIN):$(PATH)

# For a command that Ctrl-C ends: in a terminal it gets a process group of its own, so that make does not end with it.
UNTIL_CTRL_C = @[ ! -t 0 ] || set -m; $(1) || [ $$? -eq 130 ]
# Without MLflow's job queue, which evaluates language models: two processes less, and no traceback at Ctrl-C.
NO_JOBS = MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false

.PHONY: help repro data tune-workers ui demo send test soak lint audit bench lock clean

help:  ## list these commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

repro: .venv/.repro  ## run the pipeline
	dvc repro

data: .venv/.repro  ## download the faces from Kaggle into data/; DATASET=owner/name takes another data set
	python -m emotion_detection.data.kaggle $(if $(DATASET),--dataset $(DATASET))

tune-workers: .venv/.repro  ## search for a network with N=2 processes
	dvc exp run -S tune.workers=$(or $(N),2) tune

ui: .venv/.repro  ## open MLflow's pages at http://127.0.0.1:5000
	$(call UNTIL_CTRL_C,$(NO_JOBS) mlflow ui --host 127.0.0.1 --port 5000)

demo: .venv/.repro  ## open a page that labels faces in photos; MODEL=models/model.keras, PORT=5002
	$(call UNTIL_CTRL_C,emotion-detection demo $(if $(MODEL),--model $(MODEL)) $(if $(PORT),--port $(PORT)))

send: .venv/.repro  ## send MLflow what it missed during an outage
	emotion-detection send

test: .venv/.dev  ## run the tests
	python -m pytest

soak: .venv/.dev  ## test for about half an hour: kill stages, crowd the store, kill search workers
	python -m tests.soak.faults --kills 50
	python -m tests.soak.together --minutes 10
	python -m tests.soak.workers

lint: .venv/.dev  ## check format, style and types
	ruff format --check .
	ruff check .
	mypy

audit: .venv/.dev  ## look up the pinned packages among known vulnerabilities
	pip-audit --requirement requirements-dev.txt --require-hashes --disable-pip --progress-spinner off

bench: .venv/.dev  ## measure the speed and write docs/benchmarks.md; SOURCE=archive.zip takes other images
	python -m benchmarks $(if $(SOURCE),--source $(SOURCE))

lock:  ## resolve requirements*.txt again, with uv
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
