# make demo: sets up and runs the main job on the embedded base (no downloads of weights or data)
# make test: sets up and runs the tests
# make test-lmms: the tests with lmms-eval, in an environment of its own (it asks for other versions)
# All make their own virtual environment; PYTHON names the interpreter it is made from.

PYTHON ?= python3
VENV   := .venv
LMMS   := .venv-lmms
RUN    := $(VENV)/bin/python

.PHONY: demo test test-lmms lint clean

demo: $(VENV)/ready
	$(RUN) -m assets.mini.demo runs/demo

test: $(VENV)/ready-to-test
	$(RUN) -m pytest

test-lmms: $(LMMS)/ready
	$(LMMS)/bin/python -m pytest tests/eval/engines/test_lmms_eval.py

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

# What the first environment has is seen here too; what differs is installed over it. The library datasets
# patches a module that filelock has no more from 4.3 on.
$(LMMS)/ready: $(VENV)/ready-to-test
	test -x $(LMMS)/bin/python || $(RUN) -m venv $(LMMS)
	$(LMMS)/bin/python -c "import pathlib, site, sys; pathlib.Path(site.getsitepackages()[0], 'first.pth').write_text(sys.argv[1])" \
		"$$($(RUN) -c 'import site; print(site.getsitepackages()[0])')"
	$(LMMS)/bin/python -m pip install --quiet --disable-pip-version-check -e ".[lmms-eval]" "filelock<4.3"
	touch $@

clean:
	rm -rf $(VENV) $(LMMS) runs
