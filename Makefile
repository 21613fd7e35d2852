# `make run` installs what the relay and the examples need; the other targets install what the
# checks need, too. Both go into the virtual environment VENV.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LISTEN ?= 127.0.0.1:8080
# The processes that share the tests, which wait more than they compute.
JOBS ?= 2
# The factor for the number of examples that each Hypothesis test tries.
EXAMPLES ?= 1
# The tests that need nothing but Python: for other versions of Python and of the dependencies.
PORTABLE := tests.unit tests.peers tests.test_needs tests.wire

.DEFAULT_GOAL := help
.PHONY: help run unit test pytest lane lowest newest portable check format bench wheel clean deploy/relay.toml

help: ## show this list
	@sed -nE 's/^([a-z./]+):[^#]*## (.*)/make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 24

run: $(VENV)/.run ## start the relay on LISTEN
	$(BIN)/pyrycode-relay --insecure-listen=$(LISTEN)

unit: $(VENV)/.dev ## run the unit tests, in a few seconds
	PYRYCODE_RELAY_TEST_EXAMPLES=0.02 HYPOTHESIS_STORAGE_DIRECTORY=$(CURDIR)/.hypothesis \
	  $(BIN)/python -m twisted.trial tests.unit tests.peers tests.test_needs

test: $(VENV)/.dev ## run all tests under trial and show the branch coverage
	$(BIN)/coverage erase
	PYRYCODE_RELAY_TEST_EXAMPLES=$(EXAMPLES) \
	  $(BIN)/coverage run -m twisted.trial --jobs=$(JOBS) tests
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

pytest: $(VENV)/.dev ## run all tests under pytest, or those in TESTS
	PYRYCODE_RELAY_TEST_EXAMPLES=$(EXAMPLES) \
	  $(BIN)/pytest -q --numprocesses=$(JOBS) --dist=worksteal $(TESTS)

lane: $(VENV)/.dev ## compare the frame lane with Autobahn's parser on ten times the streams
	PYRYCODE_RELAY_TEST_EXAMPLES=10 $(BIN)/python -m twisted.trial \
	  --temp-directory=_trial_temp_lane tests.wire.test_lane

lowest: ## run the unit and wire tests with the lowest dependencies that setup.cfg allows
	.ci/lowest > $(VENV)-lowest.txt
	$(MAKE) --no-print-directory portable VENV=$(VENV)-lowest CONSTRAINTS=$(VENV)-lowest.txt

newest: ## run the unit and wire tests on the newest CPython that is installed
	@python=$$(.ci/newest-python) && if [ -n "$$python" ]; \
	then $(MAKE) --no-print-directory portable VENV=$(VENV)-newest PYTHON="$$python"; \
	else echo "No CPython is installed that is newer than $$($(PYTHON) --version)."; fi

portable: $(VENV)/.test
	$(BIN)/python --version
	PYRYCODE_RELAY_TEST_EXAMPLES=$(EXAMPLES) $(BIN)/python -m twisted.trial \
	  --reporter=text --temp-directory=_trial_temp$(notdir $(VENV)) $(PORTABLE)

check: $(VENV)/.dev ## check lint, format, types, layers and log calls
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m twisted.trial tests.unit.test_layers tests.unit.test_log_calls

format: $(VENV)/.dev ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.bench ## compare the relay with a plain Autobahn server (BENCH=--quick for a glance)
	$(BIN)/python -m benchmarks $(BENCH)

deploy/relay.toml: $(VENV)/.dev ## write the example configuration file
	$(BIN)/twistd pyrycode-relay --example-config > $@

wheel: $(VENV)/.dev ## build the wheel and the source distribution in dist/
	$(BIN)/python -m build --sdist --wheel --outdir dist .

clean: ## remove everything that the other targets made
	rm -rf $(VENV) $(VENV)-lowest* $(VENV)-newest build dist *.egg-info _trial_temp* .coverage .coverage.*

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python setup.cfg pyproject.toml
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.test: $(VENV)/bin/python setup.cfg pyproject.toml
	$(BIN)/pip install --quiet $(addprefix --constraint=,$(CONSTRAINTS)) --editable '.[test]'
	touch $@

$(VENV)/.bench: $(VENV)/bin/python setup.cfg pyproject.toml
	$(BIN)/pip install --quiet --editable '.[bench]'
	touch $@

$(VENV)/.dev: $(VENV)/bin/python setup.cfg pyproject.toml
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.run
