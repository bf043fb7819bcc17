# Two commands: `make demo` and `make test`; `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# Settings for the command line, as in `make run CONFIG=config/small.yaml`.
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

# What the user gives is taken as it is written, and reaches the commands through the
# environment: neither make nor the shell acts on a sign in it. ARGS alone is words of
# the shell. CONFIG and TARGET may name several things, with spaces between.
GIVEN := INPUT OUTPUT CONFIG TARGET REPO MODEL PROFILE CORES PYTHON ARGS TEST_WORKERS \
	PLAIN PUSH JUDGE RELEASE
$(foreach name,$(GIVEN),$(if $(filter command environment,$(firstword $(origin \
	$(name)))),$(eval override $(name) := $$(value $(name)))))

SNAKEMAKE := $(VENV)/bin/snakemake
# Found without installation: `prefdistill` at the root is a link to the package.
PREFDISTILL := $(VENV)/bin/python -m prefdistill
CHAOS := PYTHONPATH=workflow/scripts:tests/integration $(VENV)/bin/python tests/chaos
PIP_INSTALL := $(VENV)/bin/python -m pip install -q --disable-pip-version-check
# A copy of the lock that was installed last: no file times, so that neither a touch
# nor another check-out of the same lock installs anything.
INSTALLED := $(VENV)/installed.lock
# Snakemake in this environment reads configurations as plain data; the file says why.
GUARD := workflow/scripts/prefdistill/pipeline/config_files.py
GUARD_START := workflow/scripts/prefdistill_guard.pth
# Cores and GPUs are counted here and not in profiles/default, which Snakemake lays over
# every other profile. Jobs that use a GPU run one at a time on one machine, as nothing
# else shares out its memory.
LOCAL := --cores "$$CORES" $(if $(shell command -v nvidia-smi),--resources gpu=1)
WHERE := --profile "$$PROFILE" $(if $(filter profiles/default,$(PROFILE)),$(LOCAL))
JUDGE := results/$(if $(filter merged,$(MODEL)),merged,gptq/$(MODEL:gptq%=%)bit)
RELEASE := results/release/$(if $(filter merged,$(MODEL)),merged,$(MODEL)bit)
# Under names of their own: a make that a command starts is to find these from its MODEL.
JUDGE_FOLDER := $(JUDGE)
RELEASE_FOLDER := $(RELEASE)
FILES := $(if $(CONFIG),--configfile $$CONFIG)
WHAT := $$TARGET $(FILES)
export $(filter-out JUDGE RELEASE,$(GIVEN)) JUDGE_FOLDER RELEASE_FOLDER

### use: run the workflow and its judges

.PHONY: help
help: ## list the targets
	@echo "usage: make TARGET [CONFIG=\"config/a.yaml config/b.yaml\"] [PROFILE=slurm]"
	@echo "            [TARGET=all] [CORES=N] [PYTHON=python3.11] [ARGS=\"--keep-going\"]"
	@echo "A name is taken as it is written. ARGS is words of the shell, which reads them."
	@awk -F ':.*## ' '/^### /{printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## /{printf "  %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## install every pinned package into .venv, once
	@cmp -s requirements.lock $(INSTALLED) || $(MAKE) --no-print-directory install
	@for site in $(VENV)/lib/python3*/site-packages; do [ ! -d $$site ] || { \
		cmp -s $(GUARD) $$site/prefdistill_config_files.py || \
			cp $(GUARD) $$site/prefdistill_config_files.py; \
		cmp -s $(GUARD_START) $$site/prefdistill_guard.pth || \
			cp $(GUARD_START) $$site/prefdistill_guard.pth; }; done

.PHONY: install
install:
	$(if $(PYTHON),,$(error no python3.11 found: install it or give PYTHON=its-path))
	@"$$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
		echo "error: $$PYTHON is $$("$$PYTHON" -V 2>&1), but the pins are for" \
			"Python 3.11: install it or give PYTHON=its-path" >&2; exit 1; }
	@"$$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "error: $$PYTHON has no venv module: apt-get install python3.11-venv" \
			>&2; exit 1; }
	"$$PYTHON" -m venv $(VENV)
	$(PIP_INSTALL) -c requirements.lock "$$(grep '^torch==' requirements.lock)"
	$(PIP_INSTALL) --no-deps -r requirements.lock
	@cp requirements.lock $(INSTALLED)

.PHONY: demo
demo: setup ## run config/demo.yaml: tiny models, simulated pairs, minutes on two cores
	$(PREFDISTILL) run all --configfile config/demo.yaml \
		--profile profiles/default $(LOCAL) $(ARGS)
	@$(MAKE) --no-print-directory report CONFIG=config/demo.yaml

.PHONY: run
run: setup ## run TARGET with CONFIG (config/config.yaml by default) and PROFILE
	set -f; $(PREFDISTILL) run $(WHAT) $(WHERE) $(ARGS)

.PHONY: plan
plan: setup ## show the jobs that `make run` would run, why, and what they would take
	set -f; $(PREFDISTILL) run $(WHAT) $(WHERE) --dry-run $(ARGS)
	@set -f; $(PREFDISTILL) plan $(WHAT) $(WHERE) $(ARGS)

.PHONY: status
status: setup ## show which jobs are done, running, failed and left, and the GPU hours left
	@set -f; $(PREFDISTILL) status $(WHAT) $(WHERE) $(ARGS)

.PHONY: report
report: setup ## bring results/report and results/report.html up to date, print the scores
	set -f; $(PREFDISTILL) run report $(FILES) $(WHERE) $(ARGS)
	set -f; $(SNAKEMAKE) report $(FILES) $(WHERE) \
		--report results/report.html --quiet
	@cat results/report/summary.md

.PHONY: release
release: setup ## write results/release: judges with card and example, to hand on
	set -f; $(PREFDISTILL) run release $(FILES) $(WHERE) $(ARGS)

# Nothing is installed for a command that lacks its arguments.
.PHONY: predict
predict: $(if $(and $(INPUT),$(OUTPUT)),setup) ## score a file: INPUT=pairs.csv OUTPUT=out.csv MODEL=gptq4 (PLAIN=1: texts)
	@$(if $(and $(INPUT),$(OUTPUT)),,$(error INPUT and OUTPUT are needed, as in \
		make predict INPUT=pairs.csv OUTPUT=out.csv MODEL=gptq4))
	@exec $(PREFDISTILL) predict "$$JUDGE_FOLDER" "$$INPUT" "$$OUTPUT" \
		$(if $(PLAIN),--plain) $(ARGS)

.PHONY: push
push: $(if $(REPO),setup) ## show an upload of a release to the Hub: REPO=me/judge (PUSH=1 uploads)
	@$(if $(REPO),,$(error REPO is needed, as in make push REPO=me/judge MODEL=gptq4))
	@$(PREFDISTILL) push "$$RELEASE_FOLDER" "$$REPO" $(if $(PUSH),--push)

.PHONY: unlock
unlock: setup ## release a lock that `make run` cannot recognise as a dead driver's
	set -f; $(SNAKEMAKE) $(WHAT) --unlock

.PHONY: clean-results
clean-results: setup ## remove everything that runs have made, checkpoints included
	@$(PREFDISTILL) clean

### develop: change the workflow and check it

.PHONY: test
test: setup ## run the whole test suite
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n "$$TEST_WORKERS" --dist loadfile \
		$(ARGS)

.PHONY: lint
lint: setup ## check style: ruff, snakefmt, snakemake --lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/snakefmt --check workflow
	$(SNAKEMAKE) --lint --configfile config/demo.yaml

.PHONY: dag
dag: setup ## draw the rule graph of CONFIG (config/demo.yaml) to docs/rulegraph.svg
	@command -v dot >/dev/null || { echo "error: no Graphviz found, which draws the" \
		"rule graph: apt-get install graphviz" >&2; exit 1; }
	set -f; $(SNAKEMAKE) $$TARGET --configfile $${CONFIG:-config/demo.yaml} \
		--rulegraph dot --quiet | tred | dot -Tsvg > docs/rulegraph.svg.part
	@mv docs/rulegraph.svg.part docs/rulegraph.svg

.PHONY: docs
docs: ## write the documentation as a site to site/, in an environment of its own
	@cmp -s docs/requirements.txt $(DOCS_VENV)/installed.txt || { \
		"$$PYTHON" -m venv --clear $(DOCS_VENV) && \
		$(DOCS_VENV)/bin/python -m pip install -q --disable-pip-version-check \
			--no-deps -r docs/requirements.txt && \
		cp docs/requirements.txt $(DOCS_VENV)/installed.txt; }
	$(DOCS_VENV)/bin/mkdocs build --strict --quiet

.PHONY: clean
clean: ## remove caches; results and .venv stay
	rm -rf .pytest_cache .ruff_cache .hypothesis
	find benchmarks tests workflow -name __pycache__ -type d -prune -exec rm -rf {} +

### prove: test reliability by force, measure speed

.PHONY: slurm-test
slurm-test: setup ## start a toy Slurm (as root, on Debian), run the workflow on it, stop it
	@folder=$$(mktemp -d /tmp/slurm-XXXXXX); trap "tests/slurm/stop.sh $$folder" EXIT; \
	tests/slurm/start.sh $$folder; \
	SLURM_TEST_FOLDER=$$folder $(VENV)/bin/python -m pytest tests/slurm $(ARGS)

.PHONY: chaos
chaos: setup ## kill training and jobs, race copies of jobs: 200, 50, 50 and 50 times
	$(CHAOS)/training.py --kills 200 --signals 50 $(ARGS)
	$(CHAOS)/jobs.py --kills 50 --races 50 $(ARGS)

.PHONY: chaos-driver
chaos-driver: setup ## kill the driver 20 times (ARGS="--kills N"); one command recovers
	OMP_NUM_THREADS=1 $(CHAOS)/driver.py $(ARGS)

.PHONY: chaos-signals
chaos-signals: setup ## send runs every signal of a terminal (ARGS="--runs N --signals M")
	OMP_NUM_THREADS=1 $(CHAOS)/signals.py $(ARGS)

.PHONY: chaos-workflow
chaos-workflow: setup ## 30 whole runs under random kills (ARGS="--runs N --parallel M")
	OMP_NUM_THREADS=1 $(CHAOS)/workflow.py $(ARGS)

.PHONY: faults
faults: setup ## fail every write, fsync and rename of every writer, and count
	FAULTS=all OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest \
		tests/faults/test_whole_files.py $(ARGS)

.PHONY: fuzz
fuzz: setup ## import mutated input files for a minute (ARGS="--minutes 60 --seed 1")
	PYTHONPATH=workflow/scripts OMP_NUM_THREADS=1 $(VENV)/bin/python \
		tests/fuzz/csv_fuzz.py $(ARGS)

.PHONY: bench
bench: setup ## time the public recipe and this engine on the GPU (ARGS="--models gemma-2-9b")
	$(VENV)/bin/python -m benchmarks.engine $(ARGS)

.PHONY: bench-cpu
bench-cpu: setup ## measure packing's gain and what a job's start costs, on the CPU
	$(VENV)/bin/python -m benchmarks.cpu $(ARGS)
