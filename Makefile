# make study   environment, jets, masking study, report     PRESET=smoke|quick|gpu|paper DATA= SEEDS= ARGS=
# make test    environment, tests
# make coverage   the tests, and which lines they ran
# make bench   environment, benchmark of the trainer          ARGS="--quick --only step,packs --device cuda"
# make chaos   environment, faults and servers that take minutes, then a schedule of kills   ARGS="--minutes 10 --seed 3"
# make lint    format, lint and types
# make docs    the documentation as a site: site/index.html

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STUDY ?= masking_ablation
PRESET ?= quick

OPTIONS := --preset $(PRESET) $(if $(DATA),--data $(DATA)) $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

.PHONY: study test coverage bench chaos lint format docs clean

study: $(VENV)/installed
	$(BIN)/python studies/$(STUDY).py $(OPTIONS)

# Files in their order, not those with most tests first: the long ones have few.
test: $(VENV)/installed
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

coverage: $(VENV)/installed
	$(BIN)/coverage run -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.bench $(ARGS)

# Each fault by itself, then all of them at random, by a seed; fails when the promise of docs/operations.md is broken.
chaos: $(VENV)/installed
	JBOT_CHAOS=1 $(BIN)/python -m pytest tests/faults/test_faults_long.py tests/cluster/tracking/test_server.py
	$(BIN)/python tests/faults/chaos.py $(ARGS)

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Strict: a link that leads nowhere is an error.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

# torch by itself and first: an unpinned one may bring gigabytes of CUDA libraries.
$(VENV)/installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all,dev]"
	touch $@

clean:
	rm -rf $(VENV) site .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
