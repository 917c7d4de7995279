# make demo: sets up and runs the main job on the embedded base (no downloads of weights or data)
# make test: sets up and runs the tests
# Both make their own virtual environment; PYTHON names the interpreter it is made from.

PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python

.PHONY: demo test lint clean

demo: $(VENV)/ready
	$(RUN) -m assets.mini.demo runs/demo

test: $(VENV)/ready-to-test
	$(RUN) -m pytest

lint: $(VENV)/ready-to-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

$(VENV)/ready: requirements.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/ready-to-test: $(VENV)/ready pyproject.toml
	$(RUN) -m pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) runs
