# Thin lines over `python -m attrobust`. The environment is built on first use: an active virtual or conda
# environment is respected, otherwise .venv is made here. `make help` lists the targets and their switches.

PROFILE ?= cpu
ONLY ?=
JOBS ?= 0
CLUSTER ?=
SHARD ?=
FROM ?=
FRESH ?=
UPDATE ?=
DATASETS ?= fashion_mnist
TORCH ?=
PYTHON3 ?= python3

# Quoted wherever it is used: the folder's name may hold spaces. Hence also no file target for the environment.
VENV := $(or $(VIRTUAL_ENV),$(if $(filter-out base,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX)),$(CURDIR)/.venv)
PYTHON := '$(VENV)/bin/python'
READY := '$(VENV)/.attrobust-ready'
# Each environment keeps its own list of fonts: another's may name fonts that are no longer there.
export MPLCONFIGDIR := $(VENV)/matplotlib

INDEX := $(if $(filter cpu,$(TORCH)),--extra-index-url https://download.pytorch.org/whl/cpu)
BENCH := build/bench-env
RUN := OMP_NUM_THREADS=1 JUPYTER_PREFER_ENV_PATH=1 $(PYTHON) -m
# Where Python is told to keep no bytecode, each process of the tests would compile the package anew (five seconds).
PYTEST := PYTHONDONTWRITEBYTECODE= $(RUN) pytest -q --durations=5 -n logical --maxprocesses 4 --dist load --maxschedchunk 1 --only '$(ONLY)'

.DEFAULT_GOAL := help
.PHONY: help env install reproduce merge figures data parameters lab site test test-slow test-browser test-all gpu-check bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo
	@echo "switches      PROFILE=smoke|cpu|full|gpu|headline  ONLY=03  JOBS=n  CLUSTER=tcp://host:8786  SHARD=i/n  FROM='folder ...'  FRESH=1  UPDATE=1  TORCH=cpu  DATASETS='mnist cifar10'"

env: ## build the environment (done by every other target too)
	@test $(READY) -nt pyproject.toml -a $(READY) -nt constraints.txt || $(MAKE) --no-print-directory install

install:
	@$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON3=/path/to/python3")'
	@test -x $(PYTHON) || $(PYTHON3) -m venv '$(VENV)'
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(PYTHON) -m pip install -q --disable-pip-version-check $(INDEX) -c constraints.txt -e '.[notebooks,test,hf,photos,cluster,site]'
	@$(PYTHON) -c 'import matplotlib.font_manager'
	@touch $(READY)

reproduce: env ## recompute every notebook from an empty store, draw every figure, compare the claims
	@$(RUN) attrobust reproduce --profile '$(PROFILE)' --only '$(ONLY)' --jobs '$(JOBS)' --cluster '$(CLUSTER)' --shard '$(SHARD)' $(if $(FRESH),--fresh) $(if $(UPDATE),--update)

merge: env ## bring together what shards (SHARD=i/n) left in FROM='folder ...', copies of their build/reproduce/PROFILE
	@$(RUN) attrobust merge --profile '$(PROFILE)' $(FROM)

figures: env ## draw every figure again from committed rows
	@$(RUN) attrobust figures --only '$(ONLY)'

data: env ## download data sets (asks first; DATASETS=...)
	@$(RUN) attrobust data $(DATASETS)

parameters: env ## list every notebook's parameters
	@$(RUN) attrobust parameters

lab: env ## open JupyterLab in notebooks/
	@JUPYTER_PREFER_ENV_PATH=1 $(PYTHON) -m jupyterlab --notebook-dir notebooks

site: env ## build a static site of notebooks, pages and library reference into build/site; nothing is downloaded
	@rm -rf build/site build/site-source && mkdir -p build/site-source
	@$(RUN) sphinx -q -E -W --keep-going -j 2 -c docs/site -d build/site-doctrees build/site-source build/site
	@echo 'open build/site/index.html'

test: env ## lint, import contract, unit laws, notebooks under nbval, smoke run (ONLY=06: what concerns one notebook)
	@$(RUN) ruff format --check .
	@$(RUN) ruff check .
	@'$(VENV)/bin/lint-imports'
	@$(PYTEST) $(MARKS)

test-slow: env ## what is minutes long or tried in turn, then browser tests
	@$(PYTEST) -m 'slow or in_turn'
	@$(MAKE) --no-print-directory test-browser

test-browser: env ## pages and "Run all" in a real browser: it is timed, so that nothing runs beside it
	@$(PYTEST) -n 0 -m browser

test-all: MARKS := -m 'not browser'
test-all: test ## all of them
	@$(MAKE) --no-print-directory test-browser

gpu-check: env ## on a graphics card: its numbers beside the processor's, times of ensembles, one headline cell
	@$(PYTHON) -c 'import sys, torch; torch.cuda.is_available() or sys.exit("torch finds no graphics card on this machine")'
	@$(RUN) pytest -q -n 4 -m gpu tests/test_gpu.py
	@PYTHONPATH=tests $(RUN) benchmarks.card
	@$(RUN) attrobust reproduce --profile headline --only 03 -p device cuda -p datasets '[digits]' -p seeds '[0, 1, 2, 3, 4]'

bench: ## time the curvature engine and other parts beside their peers, in an environment of its own (about a quarter of an hour)
	@test -x $(BENCH)/bin/python || $(PYTHON3) -m venv $(BENCH)
	@$(BENCH)/bin/python -m pip install -q --disable-pip-version-check $(INDEX) -c constraints.txt -e '.[cluster]'
	@$(BENCH)/bin/python -m pip install -q --disable-pip-version-check --no-deps -r tests/benchmarks/requirements.txt
	@OMP_NUM_THREADS=1 PYTHONPATH=tests $(BENCH)/bin/python -W ignore -m benchmarks

clean: ## remove what was built here (never committed files or data)
	@rm -rf build .venv .pytest_cache .ruff_cache .import_linter_cache .hypothesis
