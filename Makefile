# Two virtual environments' worth of work in one: `make run` installs what the relay and the
# examples need, everything else what the checks need besides.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LISTEN ?= 127.0.0.1:8080
# Processes that share the tests, which wait more than they work.
JOBS ?= 2

.PHONY: run test pytest lane check bench format wheel clean deploy/relay.toml

run: $(VENV)/.run ## start the relay on LISTEN
	$(BIN)/twistd --pidfile= -n pyrycode-relay --insecure-listen=$(LISTEN)

test: $(VENV)/.dev ## run the whole suite under trial, and show its branch coverage
	$(BIN)/coverage erase
	$(BIN)/coverage run -m twisted.trial --jobs=$(JOBS) tests
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

pytest: $(VENV)/.dev ## run the whole suite under pytest
	$(BIN)/pytest -q --numprocesses=$(JOBS) --dist=worksteal

lane: $(VENV)/.dev ## compare the frame lane with Autobahn's parser on many more streams
	PYRYCODE_RELAY_TEST_EXAMPLES=10 $(BIN)/python -m twisted.trial \
	  --temp-directory=_trial_temp_lane tests.wire.test_lane

check: $(VENV)/.dev ## lint, types, the layers and the log's fields
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m twisted.trial tests.unit.test_layers tests.unit.test_log_calls

bench: $(VENV)/.bench ## measure the relay against the obvious one; BENCH=--quick for a glance
	$(BIN)/python -m benchmarks $(BENCH)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

deploy/relay.toml: $(VENV)/.dev ## write the example of a configuration file
	$(BIN)/twistd pyrycode-relay --example-config > $@

wheel: $(VENV)/.dev ## build dist/*.whl
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info _trial_temp* .coverage .coverage.*

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python setup.cfg pyproject.toml
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.bench: $(VENV)/bin/python setup.cfg pyproject.toml
	$(BIN)/pip install --quiet --editable '.[bench]'
	touch $@

$(VENV)/.dev: $(VENV)/bin/python setup.cfg pyproject.toml
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.run
