# Everything a newcomer needs: make demo, make up, make test. Each makes the environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo up test test-long lint format histories fingerprints permissions bench chaos lock clean

help:
	@echo "make demo    watch a real rollback of a broken deployment, start to end (about two minutes)"
	@echo "make up      keep sandbox, Temporal UI and worker running until Ctrl-C"
	@echo "make test    run the tests, for every change"
	@echo "make test-long  what make test leaves out, for a release: more ways, more kills, more weeks"
	@echo "make lint    style and types"
	@echo "make bench   what the frame costs, as ratios"
	@echo "make chaos   every runbook with everything killed and failing, as a table"

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || { echo "making the environment in $(VENV) (about a minute, once)"; $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY)
	@$(BIN)/runbooks demo $(ARGS)

up: $(READY)
	@$(BIN)/runbooks sandbox up --worker $(ARGS)

# Side by side, because many of these tests wait (tests/few_cores.py). One file alone: make test ARGS=tests/test_worker.py
test: $(READY)
	@$(BIN)/python -m pytest -n 4 --no-loadscope-reorder $(ARGS)

test-long: $(READY)
	@$(BIN)/python -m pytest -n 4 --no-loadscope-reorder -m long $(ARGS)

lint: $(READY)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(READY)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# Replaces the kept histories by new ones: only for workflows that nobody runs in that form any more.
histories: $(READY)
	@RECORD_HISTORIES=1 $(BIN)/python -m pytest -q -m '' tests/runbooks
	@$(BIN)/python -m tests.fingerprints anew

# Writes down which commands the workflows give, where a change of them is safe. ANEW=anew: nobody runs the old form.
fingerprints: $(READY)
	@$(BIN)/python -m tests.fingerprints $(ANEW)

# Adds the calls that the tests of real procedures make to the policies under deploy/.
permissions: $(READY)
	@RECORD_CALLS=1 $(BIN)/python -m pytest -q -m '' tests/runbooks

bench: $(READY)
	@$(BIN)/python -m bench

chaos: $(READY)
	@$(BIN)/python -m tests.chaos $(ARGS)

# Pins every package with its hashes, for all Pythons and platforms; names no index. The image gets a part of them.
COMPILE := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-annotate --no-header --quiet
lock:
	$(COMPILE) --all-extras -o requirements.lock
	$(COMPILE) --extra otel --constraint requirements.lock -o requirements-worker.lock

clean:
	rm -rf $(VENV) .sandbox build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
