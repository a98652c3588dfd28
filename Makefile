# make demo   run the quickstart in a real notebook server, show its result, stop everything
# make test   lint, types, import rules and the whole test suite
# make drills what takes minutes: pymongo's own tests with our client, and random kills while documents are written (DRILL_SEED= repeats)
# make lab    the quickstart, open in JupyterLab
# make panel  the panel of JupyterLab, by Node (npm); everything else works without it
# All of them first make .venv, once for each state of pyproject.toml and constraints.txt.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN    := .venv/bin
STAMP  := .venv/.installed-$(shell cat pyproject.toml constraints.txt | cksum | tr ' ' '-')

.PHONY: demo lab panel panel-packages test lint quick drills install clean

demo: install
	@$(BIN)/python scripts/demo.py

lab: install
	@$(BIN)/python scripts/demo.py lab

PANEL := .venv/share/jupyter/labextensions/superduper-nb

panel: install panel-packages
	cd labextension && npm run build
	rm -rf $(PANEL)
	mkdir -p $(dir $(PANEL))
	cp -r build/labextension $(PANEL)

panel-packages:
	cd labextension && npm ci --ignore-scripts --no-audit --no-fund

# Three processes on two cores: half of a test is waiting for processes that it starts.
test: lint
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not drill"

quick: install
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow and not drill"

drills: install
	DRILL_KILLS=20 $(BIN)/python -m pytest -m drill -s

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(STAMP)

# torch first and alone, so that a build of it that is already there (CPU, CUDA) is kept. Not compiled while installing: that
# takes as long as everything else, and most of it is never imported.
$(STAMP):
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt torch
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt -e ".[all]"
	@rm -f .venv/.installed-*
	@touch $@

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
