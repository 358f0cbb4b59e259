# The project's commands. Each makes the environment that it needs; PYTHON=python3.12 picks another.
PYTHON ?= python3
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PIP := python -m pip install --disable-pip-version-check --quiet --progress-bar on
LOCK := --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command "make lock"
export PATH := $(CURDIR)/$(BIN):$(PATH)

# For a command that Ctrl-C ends: in a terminal it gets a process group of its own, so that make does not end with it.
UNTIL_CTRL_C = @[ ! -t 0 ] || set -m; $(1) || [ $$? -eq 130 ]
# Without MLflow's job queue, which evaluates language models: two processes less, and no traceback at Ctrl-C.
NO_JOBS = MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false

.PHONY: help has-git repro gpu data tune-workers compare ui demo send test soak lint audit bench lock clean

help:  ## list these commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

has-git:
	@git rev-parse --quiet --verify HEAD >/dev/null 2>&1 || { printf '%s\n' \
	  'DVC needs a Git repository with a commit. Make one here, and run this again:' \
	  '  git init && git add -A' '  git commit -m "Begin"'; exit 1; }

repro: has-git .venv/.repro  ## run the pipeline
	dvc repro

gpu: .venv/.repro  ## take the TensorFlow that computes on an NVIDIA GPU (Linux, x86): downloads 3 GB
	python -m pip uninstall --quiet --yes tensorflow-cpu
	$(PIP) --require-hashes -r requirements-gpu.txt

data: .venv/.repro  ## download the faces from Kaggle into data/; DATASET=owner/name takes another data set
	python -m emotion_detection.data.kaggle $(if $(DATASET),--dataset $(DATASET))

tune-workers: has-git .venv/.extras  ## search for a network with N=2 processes
	dvc exp run -S tune.workers=$(or $(N),2) tune

compare: has-git .venv/.repro  ## compare the experiments: what was changed, validation and test accuracy, macro F1
	dvc exp show --only-changed --drop '(data|models|reports|src|stages)/'

ui: .venv/.repro  ## open the runs in MLflow's pages, at the address that it prints
	@python -m emotion_detection.tracking.address http://127.0.0.1:5000
	$(call UNTIL_CTRL_C,$(NO_JOBS) mlflow ui --host 127.0.0.1 --port 5000 --uvicorn-opts "--log-level warning")

demo: .venv/.repro  ## open a page that labels faces in photos; MODEL=models/model.keras, PORT=5002
	$(call UNTIL_CTRL_C,emotion-detection demo $(if $(MODEL),--model $(MODEL)) $(if $(PORT),--port $(PORT)))

send: .venv/.repro  ## send MLflow what it missed during an outage
	emotion-detection send

test: .venv/.dev  ## run all tests but the slow ones
	python -m pytest

soak: .venv/.dev  ## test for an hour: the slow tests; kill stages, crowd the store, give bad inputs
	python -m pytest -m slow
	python -m tests.soak.faults --kills 50
	python -m tests.soak.together --minutes 10
	python -m tests.soak.coverage
	python -m tests.soak.inputs --minutes 10

lint: .venv/.dev  ## check format, style and types
	ruff format --check .
	ruff check .
	mypy

audit: .venv/.dev  ## look up the pinned packages among known vulnerabilities
	pip-audit --requirement requirements-dev.txt --require-hashes --disable-pip --progress-spinner off

bench: .venv/.dev  ## measure the speed and write docs/benchmarks.md; SOURCE=archive.zip takes other images
	python -m benchmarks $(if $(SOURCE),--source $(SOURCE))

lock:  ## resolve requirements*.txt again, with uv
	uv pip compile pyproject.toml --universal $(LOCK) --output-file requirements.txt
	uv pip compile pyproject.toml --universal $(LOCK) --extra onnx --extra scale --extra ray --constraint requirements.txt --output-file requirements-extras.txt
	uv pip compile pyproject.toml --universal $(LOCK) --extra onnx --extra scale --extra ray --extra dev --constraint requirements-extras.txt --output-file requirements-dev.txt
	echo 'tensorflow[and-cuda]' | uv pip compile - --python-platform x86_64-manylinux_2_28 $(LOCK) --constraint requirements.txt --output-file requirements-gpu.txt

clean:  ## say what takes space; WHAT="states models runs copies cache" removes some of it
	emotion-detection clean $(WHAT)

.venv/.repro: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit(f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}; try make PYTHON=python3.12")'
	@echo "installing the packages of requirements.txt in .venv: 0.6 GB to download, 2.5 GB on disk"
	$(PYTHON) -m venv .venv
	@# The pip that comes with Python may be too old to show a bar while it installs.
	@sed -n '/^pip==/,/[^\\]$$/p' requirements-dev.txt > .venv/pip.txt && $(PIP) --require-hashes -r .venv/pip.txt
	$(PIP) --require-hashes -r requirements.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.extras: requirements-extras.txt .venv/.repro
	$(PIP) --require-hashes -r requirements-extras.txt
	@touch $@

.venv/.dev: requirements-dev.txt .venv/.repro
	$(PIP) --require-hashes -r requirements-dev.txt
	@touch $@
