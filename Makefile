# The verbs of this project; `make` alone lists them.
VENV := .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
PY := $(BIN)/python
READY := $(VENV)/.ready
BUF_VERSION := 1.75.0
BUF := .tools/node_modules/.bin/buf

.DEFAULT_GOAL := help
.PHONY: help setup protos sync baseline lock check check-python check-generated check-protos test demo run bench clean

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## find a Python >= 3.12, make .venv and install the pinned dependencies

$(READY): pyproject.toml constraints.txt scripts/find_python.sh
	@python=$$(sh scripts/find_python.sh) || exit 1; \
	echo "setup: using $$python"; \
	"$$python" -m venv --clear $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)
	@echo "setup: done; the command is $(BIN)/genaid"

protos: setup ## generate the Python code from protos/
	@$(PY) scripts/generate_protos.py

sync: setup ## generate the blocking client from the asyncio one
	@$(PY) scripts/generate_sync.py

baseline: setup ## accept the present contracts as the ones not to break
	@$(PY) scripts/generate_protos.py --baseline

lock: setup ## write what is installed now to constraints.txt
	@$(PY) -m pip freeze --exclude-editable --disable-pip-version-check > constraints.txt

check: check-python check-generated check-protos ## lint, format, types, contracts, generated code

check-python: setup
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

check-generated: setup
	@$(PY) scripts/generate_protos.py --check
	@$(PY) scripts/generate_sync.py --check

check-protos: setup
	@if command -v npm >/dev/null 2>&1; then \
	  [ -x $(BUF) ] || npm install --silent --no-audit --no-fund --no-save --prefix .tools @bufbuild/buf@$(BUF_VERSION) || exit 1; \
	  $(BUF) lint protos && $(BUF) breaking protos --against protos/baseline.binpb && echo "buf: contracts are well formed and break nothing"; \
	else echo "buf: skipped, there is no npm on the PATH (install Node.js to lint the contracts)"; fi

test: setup ## run every test
	@$(PY) -m pytest -n 2 --dist worksteal

demo: setup ## make one image through all layers: demo.png
	@$(PY) -m genaid_server.demo

run: setup ## run genaid in the foreground on its default ports
	@$(BIN)/genaid up

bench: setup ## measure, print the table and write bench/results.json
	@$(PY) -m bench

clean: ## remove everything that the verbs above made
	rm -rf $(VENV) .tools build dist demo.png bench/models .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
