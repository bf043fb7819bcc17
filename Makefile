# Two commands: `make demo` and `make test`; `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# Settings, each for the command line, as in `make run CONFIG=config/small.yaml`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
DOCS_VENV := .venv-docs
CONFIG ?=
PROFILE ?= profiles/default
TARGET ?= all
CORES ?= $(shell nproc)
TEST_WORKERS ?= 2
ARGS ?=
# Of `make predict` and `make push`: merged, gptq8 or gptq4.
MODEL ?= gptq4

SNAKEMAKE := $(VENV)/bin/snakemake
# Snakemake, after clearing up where its last driver was killed.
DRIVE := $(VENV)/bin/python tools/drive.py $(SNAKEMAKE)
SHOW_JOBS := $(VENV)/bin/python tools/show_jobs.py
PIP_INSTALL := $(VENV)/bin/python -m pip install -q --disable-pip-version-check
# A copy of the lock that was installed last: no file times, so that neither a touch
# nor another check-out of the same lock installs anything.
INSTALLED := $(VENV)/installed.lock
# Cores and GPUs are counted here and not in profiles/default, which Snakemake lays over
# every other profile. Jobs that use a GPU run one at a time on one machine, as nothing
# else shares out its memory.
LOCAL := --cores $(CORES) $(if $(shell command -v nvidia-smi),--resources gpu=1)
WHERE := --profile $(PROFILE) $(if $(filter profiles/default,$(PROFILE)),$(LOCAL))
JUDGE := results/$(if $(filter merged,$(MODEL)),merged,gptq/$(MODEL:gptq%=%)bit)
RELEASE := results/release/$(if $(filter merged,$(MODEL)),merged,$(MODEL)bit)
WHAT := $(TARGET) $(if $(CONFIG),--configfile $(CONFIG))

.PHONY: help
help: ## list the targets
	@echo "usage: make TARGET [CONFIG=\"config/a.yaml config/b.yaml\"] [PROFILE=slurm]"
	@echo "            [TARGET=all] [CORES=N] [PYTHON=python3.11] [ARGS=\"--keep-going\"]"
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) \
		| awk -F ':.*## ' '{printf "  %-15s %s\n", $$1, $$2}'

.PHONY: setup
setup: ## install every pin into .venv (does nothing when that is done)
	@cmp -s requirements.lock $(INSTALLED) || $(MAKE) --no-print-directory install

.PHONY: install
install:
	$(if $(PYTHON),,$(error no python3.11 found: install it or give PYTHON=its-path))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
		echo "error: $(PYTHON) is $$($(PYTHON) -V 2>&1), but the pins are for" \
			"Python 3.11: install it or give PYTHON=its-path" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "error: $(PYTHON) has no venv module: apt-get install python3.11-venv" \
			>&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -c requirements.lock "$$(grep '^torch==' requirements.lock)"
	$(PIP_INSTALL) --no-deps -r requirements.lock
	@cp requirements.lock $(INSTALLED)

.PHONY: demo
demo: setup ## run config/demo.yaml: tiny models, simulated pairs, minutes on two cores
	$(DRIVE) all --configfile config/demo.yaml --profile profiles/default $(LOCAL) $(ARGS)
	@$(MAKE) --no-print-directory report CONFIG=config/demo.yaml

.PHONY: run
run: setup ## run TARGET with CONFIG (config/config.yaml if not given) through PROFILE
	$(DRIVE) $(WHAT) $(WHERE) $(ARGS)

.PHONY: plan
plan: setup ## the jobs that `make run` would run, why, and what they would take
	$(DRIVE) $(WHAT) $(WHERE) --dry-run $(ARGS)
	@$(SHOW_JOBS) plan $(WHAT) $(WHERE) $(ARGS)

.PHONY: status
status: setup ## what of TARGET is done, running, failed and left, and the GPU-hours left
	@$(SHOW_JOBS) status $(WHAT) $(WHERE) $(ARGS)

.PHONY: report
report: setup ## bring results/report.html and results/report up to date, print the scores
	$(DRIVE) report $(if $(CONFIG),--configfile $(CONFIG)) $(WHERE) $(ARGS)
	$(SNAKEMAKE) report $(if $(CONFIG),--configfile $(CONFIG)) $(WHERE) \
		--report results/report.html --quiet
	@cat results/report/summary.md

.PHONY: tensorboard
tensorboard: setup ## write training curves and job times as TensorBoard event files
	@$(VENV)/bin/python tools/write_events.py $(ARGS)

.PHONY: release
release: setup ## write results/release: judges with card and example, to hand on
	$(DRIVE) release $(if $(CONFIG),--configfile $(CONFIG)) $(WHERE) $(ARGS)

# Nothing is installed for a command that lacks what it needs.
.PHONY: predict
predict: $(if $(and $(INPUT),$(OUTPUT)),setup) ## score a file: INPUT=pairs.csv OUTPUT=out.csv MODEL=gptq4 (PLAIN=1: texts)
	@$(if $(and $(INPUT),$(OUTPUT)),,$(error INPUT and OUTPUT are needed, as in \
		make predict INPUT=pairs.csv OUTPUT=out.csv MODEL=gptq4))
	@PYTHONPATH=workflow/scripts exec $(VENV)/bin/python -m prefdistill.predict \
		$(JUDGE) "$(INPUT)" "$(OUTPUT)" $(if $(PLAIN),--plain) $(ARGS)

.PHONY: push
push: $(if $(REPO),setup) ## show an upload of a release to the Hub: REPO=me/judge MODEL=gptq4 (PUSH=1: do)
	@$(if $(REPO),,$(error REPO is needed, as in make push REPO=me/judge MODEL=gptq4))
	@$(VENV)/bin/python tools/push_release.py $(RELEASE) "$(REPO)" $(if $(PUSH),--push)

.PHONY: dag
dag: setup ## draw the rule graph of config/demo.yaml, or of CONFIG, to docs/rulegraph.svg
	$(SNAKEMAKE) $(TARGET) --configfile $(or $(CONFIG),config/demo.yaml) \
		--rulegraph dot --quiet \
		| $(VENV)/bin/python tools/draw_rulegraph.py docs/rulegraph.svg

.PHONY: docs
docs: ## write the documentation as a site to site/ (with an environment of its own)
	@cmp -s docs/requirements.txt $(DOCS_VENV)/installed.txt || { \
		$(PYTHON) -m venv --clear $(DOCS_VENV) && \
		$(DOCS_VENV)/bin/python -m pip install -q --disable-pip-version-check \
			--no-deps -r docs/requirements.txt && \
		cp docs/requirements.txt $(DOCS_VENV)/installed.txt; }
	$(DOCS_VENV)/bin/mkdocs build --strict --quiet

.PHONY: unlock
unlock: setup ## release a lock that `make run` cannot tell to be a dead driver's
	$(SNAKEMAKE) $(WHAT) --unlock

.PHONY: test
test: setup ## run the whole test suite
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(TEST_WORKERS) --dist loadfile \
		$(ARGS)

.PHONY: slurm-test
slurm-test: setup ## start a toy Slurm (as root, on Debian), run the workflow on it, end it
	@folder=$$(mktemp -d /tmp/slurm-XXXXXX); trap "tests/slurm/stop.sh $$folder" EXIT; \
	tests/slurm/start.sh $$folder; \
	SLURM_TEST_FOLDER=$$folder $(VENV)/bin/python -m pytest tests/slurm $(ARGS)

.PHONY: chaos-driver
chaos-driver: setup ## kill the driver 20 times (ARGS="--kills N"); one command recovers
	OMP_NUM_THREADS=1 $(VENV)/bin/python tests/chaos/driver.py $(ARGS)

.PHONY: chaos-workflow
chaos-workflow: setup ## 30 whole runs under random kills (ARGS="--runs N --parallel M")
	OMP_NUM_THREADS=1 $(VENV)/bin/python tests/chaos/workflow.py $(ARGS)

.PHONY: faults
faults: setup ## fail every write, fsync and rename of every writer, and count
	FAULTS=all OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest \
		tests/faults/test_whole_files.py $(ARGS)

.PHONY: chaos
chaos: setup ## kill training and jobs, and race copies of jobs: 200, 50, 50 and 50 times
	$(VENV)/bin/python tests/chaos/training.py --kills 200 --signals 50 $(ARGS)
	$(VENV)/bin/python tests/chaos/jobs.py --kills 50 --races 50 $(ARGS)

.PHONY: fuzz
fuzz: setup ## import mutated input files for a minute (ARGS="--minutes 60 --seed 1")
	PYTHONPATH=workflow/scripts OMP_NUM_THREADS=1 $(VENV)/bin/python \
		tests/fuzz/csv_fuzz.py $(ARGS)

.PHONY: bench
bench: setup ## the public recipe and this engine on the GPU (ARGS="--models gemma-2-9b")
	$(VENV)/bin/python bench/engine.py $(ARGS)

.PHONY: bench-cpu
bench-cpu: setup ## packing's gain and what a job's start costs, on the CPU
	$(VENV)/bin/python bench/cpu.py $(ARGS)

.PHONY: lint
lint: setup ## check style: ruff, snakefmt, snakemake --lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/snakefmt --check workflow
	$(SNAKEMAKE) --lint --configfile config/demo.yaml

.PHONY: clean
clean: ## remove caches; results and .venv stay
	rm -rf .pytest_cache .ruff_cache .hypothesis
	find tests tools workflow -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: clean-results
clean-results: ## remove everything that runs have made, checkpoints included
	rm -rf results logs benchmarks scratch .snakemake
