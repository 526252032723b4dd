# The verbs of this project; `make` alone lists them.
VENV := .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
PY := $(BIN)/python
READY := $(VENV)/.ready
# The Python of .venv, where it is not to be looked for.
PYTHON ?=
BUF_VERSION := 1.75.0
BUF := .tools/node_modules/.bin/buf

PIP := $(PY) -m pip --disable-pip-version-check --quiet
# What `make lock` may change: UPGRADE=--upgrade takes the newest of all, `UPGRADE=--upgrade-package NAME` of one.
UPGRADE :=

.DEFAULT_GOAL := help
.PHONY: help setup protos sync baseline lock check check-python check-dependencies check-generated check-protos test test-long demo run \
	bench packages clean

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## find or fetch a Python >= 3.12, make .venv and install the pinned dependencies

$(READY): pyproject.toml clients/python/pyproject.toml requirements.txt scripts/find_python.sh
	@python=$$(sh scripts/find_python.sh '$(PYTHON)') || exit 1; \
	echo "setup: using $$python"; \
	"$$python" -m venv --clear $(VENV)
	@$(PIP) install --require-hashes --requirement requirements.txt
	@$(PIP) install --no-deps --no-build-isolation --editable clients/python --editable .
	@touch $(READY)
	@echo "setup: done; the command is $(BIN)/genaid"

protos: setup ## generate the Python code from protos/
	@$(PY) scripts/generate_protos.py

sync: setup ## generate the blocking client from the asyncio one
	@$(PY) scripts/generate_sync.py

baseline: setup ## accept the present contracts as the ones not to break
	@$(PY) scripts/generate_protos.py --baseline

lock: setup ## pin in requirements.txt what the projects declare, for all systems
	@$(PY) -m uv pip compile --quiet $(UPGRADE) --universal --python-version 3.12 --generate-hashes --no-annotate \
	  --no-emit-index-url --no-emit-find-links --no-emit-package genaid-client --custom-compile-command 'make lock' \
	  --group pyproject.toml:dev --output-file requirements.txt pyproject.toml clients/python/pyproject.toml

check: check-python check-dependencies check-generated check-protos ## lint, format, types, dependencies, contracts, generated code

check-python: setup
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

# Each distribution declares what it imports; tests may use what either declares, and dev.
check-dependencies: setup
	@$(PY) -m deptry --no-ansi services
	@cd clients/python && $(abspath $(PY)) -m deptry --no-ansi .
	@$(PY) -m deptry --no-ansi tests bench scripts --exclude '^$$' --ignore DEP002,DEP004

check-generated: setup
	@$(PY) scripts/generate_protos.py --check
	@$(PY) scripts/generate_sync.py --check

# Breaking changes are found by a test, against protos/baseline.binpb.
check-protos: setup
	@command -v npm >/dev/null 2>&1 || { \
	  echo "check: buf, which lints the contracts, comes from npm, and npm is not on the PATH. Install Node.js:" >&2; \
	  echo "  Debian, Ubuntu  sudo apt install npm" >&2; \
	  echo "  Fedora          sudo dnf install nodejs-npm" >&2; \
	  echo "  macOS           brew install node" >&2; \
	  echo "  Windows         winget install OpenJS.NodeJS.LTS" >&2; \
	  exit 1; }
	@[ -x $(BUF) ] || npm install --silent --no-audit --no-fund --no-save --prefix .tools @bufbuild/buf@$(BUF_VERSION)
	@$(BUF) lint protos && echo "buf: contracts are well formed"

test: setup ## run the tests that are not long
	@$(PY) -m pytest -n 2 --dist worksteal -m "not long"

test-long: setup ## run the long tests: storms, worlds, dozens of real processes, packages
	@$(PY) -m pytest -n 2 --dist worksteal --timeout 600 -m long

packages: setup ## build both distributions into dist/
	@$(PY) -m hatchling build --directory dist
	@cd clients/python && $(abspath $(PY)) -m hatchling build --directory $(abspath dist)

demo: setup ## make one image through all layers: demo.png
	@$(PY) -m genaid_server.demo

run: setup ## run genaid in the foreground on its default ports
	@$(BIN)/genaid up

bench: setup ## measure, print the table and write bench/results.json
	@$(PY) -m bench

clean: ## remove everything that the verbs above made
	rm -rf $(VENV) .tools build dist demo.png bench/models .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
