# make test     set up .venv once and run the tests       PYTEST_ARGS="-k swapper -x" narrows them,
#               and JOBS=0 runs them one after another, as a debugger needs it
# make demo     speech, text and images to stores and into a small model; pictures in demo/out
# make bench    raggedstore beside its peers on real data; figures and a plot in .bench
# make campaigns  kill, damage, attack and starve stores for some hours; each campaign prints what it
#               tried and found, and CAMPAIGNS="kill power" runs only these
# make lint     ruff and mypy
# make format   ruff, rewriting files
# make clean    remove .venv, caches and the demo's output
#
# PYTHON picks the interpreter (3.11 or newer).  TORCH_INDEX, where set, is the package index that
# PyTorch is taken from: set it to PyTorch's CPU index to do without the CUDA packages.
# CORPORA is the folder of .npz files that `make bench` runs on; where it has none
# they are made (430 MB, from Debian packages), and BENCH_ARGS go to benchmarks/run.py.
# CAMPAIGN_ARGS go to each campaign: without --long they take a minute or less.

PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
TORCH_INDEX ?=
PYTEST_ARGS ?=
JOBS ?= 2
CORPORA ?= .bench/corpora
BENCH_ARGS ?= --runs 5
CAMPAIGNS ?= kill many forks year corrupt hostile fuzz faults full power peers
CAMPAIGN_ARGS ?= --long --seed 0

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED_TORCH := $(VENV)/installed-torch
INSTALLED := $(VENV)/installed
INSTALLED_DEMO := $(VENV)/installed-demo
INSTALLED_BENCH := $(VENV)/installed-bench
SOURCES := $(wildcard raggedstore tests examples benchmarks demo tools)

.PHONY: test demo bench campaigns lint format clean

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

demo: $(INSTALLED_DEMO)
	$(BIN)/python demo/demo.py

bench: $(INSTALLED_BENCH)
	@mkdir -p .bench
	test -n "$(wildcard $(CORPORA)/*.npz)" || $(BIN)/python benchmarks/make_corpora.py $(CORPORA)
	$(BIN)/python benchmarks/run.py $(CORPORA)/*.npz $(BENCH_ARGS) \
		--json .bench/results.json --plot .bench/results.png

campaigns: $(INSTALLED)
	@found=; for name in $(CAMPAIGNS); do \
		echo "== $$name $(CAMPAIGN_ARGS)"; \
		$(BIN)/python -m tests.campaigns.$$name $(CAMPAIGN_ARGS) || found="$$found $$name"; \
	done; test -z "$$found" || { echo "found something:$$found" >&2; exit 1; }

lint: $(INSTALLED)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

$(BIN)/python:
	@test -n "$(PYTHON)" || { \
		echo "raggedstore needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# PyTorch comes first and pinned, so that nothing after it takes a build with CUDA.
$(INSTALLED_TORCH): pyproject.toml | $(BIN)/python
	$(PIP) install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	@touch $@

$(INSTALLED): pyproject.toml raggedstore/_kernel.c $(INSTALLED_TORCH)
	$(PIP) install --quiet --editable '.[test,lint]'
	@touch $@

$(INSTALLED_DEMO): pyproject.toml $(INSTALLED)
	$(PIP) install --quiet --editable '.[demo]'
	@touch $@

# The last two ask for torchvision, and with it for another PyTorch, but need neither here.
$(INSTALLED_BENCH): pyproject.toml $(INSTALLED)
	$(PIP) install --quiet --editable '.[bench]'
	-$(PIP) install --quiet --no-deps litdata mosaicml-streaming
	@touch $@

clean:
	rm -rf $(VENV) demo/out build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis raggedstore/*.so
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
