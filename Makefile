# Everything here brings its own tools: a fresh machine needs Python 3.11+, git and make, no more.
SHELL := /bin/bash
PYTHON ?= python3
LAKE ?= data/lake
STORE ?= data/server
PORT ?= 8020
VENV ?= .venv
TOOLS := .tools
UV := $(TOOLS)/bin/uv
BIN := $(VENV)/bin
export DAGSTER_HOME := $(CURDIR)/dagster_home
export DAGSTER_DISABLE_TELEMETRY := yes
export MLFLOW_DISABLE_TELEMETRY := true
# The console's own colours and pagers have no place in a log.
export PYTHONUNBUFFERED := 1

MATERIALIZE := $(BIN)/dagster asset materialize -m neptune_assets.definitions
DEMO_PROJECTS := demo/vision demo/tabular
DEMO_STAGES := key:"demo/source/*" or key:"demo/lake/*" or key:"demo/targets/*" or (key:"demo/summary/*" and not key:"demo/summary/neptune_duckdb")

.DEFAULT_GOAL := help
.PHONY: help install demo dev test test-fast test-all coverage proofs conformance-exporter conformance-neptune3 conformance-neptune2 serve check docs format bench record-demo clean

help: ## List these targets
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | awk -F ':.*?## ' '{printf "  make %-21s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## Make the virtual environment from uv.lock

$(VENV)/.installed: pyproject.toml uv.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { echo "Python 3.11, 3.12 or 3.13 is needed; set PYTHON=python3.x"; exit 1; }
	@test -x $(UV) || { $(PYTHON) -m venv $(TOOLS) && $(TOOLS)/bin/python -m pip install --quiet uv; }
	@UV_PROJECT_ENVIRONMENT=$(VENV) $(UV) sync --locked --all-extras --quiet --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')"
	@touch $@

demo: install ## Take the sample recordings through every asset, then print what was read, written, loaded and verified
	@$(BIN)/python demo/clean.py --demo-only
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/dg utils refresh-defs-state > data/demo/discovery.log 2>&1 || { cat data/demo/discovery.log; exit 1; }
	@for project in $(DEMO_PROJECTS); do \
	  log="data/demo/$${project//\//-}.log"; echo "materializing $$project (log: $$log)"; \
	  $(MATERIALIZE) --select '$(DEMO_STAGES)' --partition "$$project" > "$$log" 2>&1 || { tail -n 40 "$$log"; exit 1; }; \
	done
	@echo "building neptune.duckdb"
	@$(MATERIALIZE) --select 'key:"demo/summary/neptune_duckdb"' > data/demo/database.log 2>&1 || { tail -n 40 data/demo/database.log; exit 1; }
	@$(BIN)/python demo/report.py --lake data/demo

dev: install ## Open the Dagster UI on http://127.0.0.1:3000
	@$(BIN)/dagster dev -w workspace.yaml --host 127.0.0.1 --port 3000

test-fast: install ## Run the tests that take seconds and start no other process
	@$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile -m "fast and not slow"

test: install ## Run the tests
	@$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow and not full and not peer and not official"

test-all: install ## Run the tests, and those that install the wheel elsewhere
	@$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow and not peer and not official"

coverage: install ## Measure which lines and branches of the package the tests run
	@$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow and not full and not peer and not official" --cov --cov-report=term

proofs: install ## Run the slow proofs: random kills, full disk, memory caps
	@$(BIN)/pytest -m "slow and not peer and not official"

conformance-exporter: install ## Try neptune-exporter's own code on our lake: make conformance-exporter PEER_PYTHON=... PEER_SRC=...
	@PEER_PYTHON="$(PEER_PYTHON)" PEER_SRC="$(PEER_SRC)" $(BIN)/pytest -m peer neptune_assets_tests/conformance

serve: install ## Serve Neptune's protocols over the lake: make serve LAKE=... STORE=... PORT=...
	@$(BIN)/neptune-assets serve --lake "$(LAKE)" --store "$(STORE)" --port "$(PORT)"

conformance-neptune3: install ## Run the 3.x clients' own test suites against our server: see docs/server.md
	@$(BIN)/pytest -m official neptune_assets_tests/conformance/test_official_neptune3.py

conformance-neptune2: install ## Run the 2.x client's own test suite against our server: see docs/server.md
	@$(BIN)/pytest -m official neptune_assets_tests/conformance/test_official_neptune2.py

check: install ## Check formatting, lint, types and docs
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/pytest neptune_assets_tests/test_docs.py

docs: install ## Write the pages and the chart that are made from settings and measurements
	@$(BIN)/python docs/generate.py

format: install ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: install ## Measure beside neptune-exporter: make bench PEER_PYTHON=... PEER_SRC=...
	@$(BIN)/python -m neptune_assets_tests.benchmarks.run --peer-python "$(PEER_PYTHON)" --peer-src "$(PEER_SRC)"

record-demo: install ## Record the demo's runs anew with the real Neptune clients
	@$(BIN)/python demo/record.py

clean: ## Remove the demo's directory and caches, and list them; never a lake or a store of yours
	@$(PYTHON) demo/clean.py
