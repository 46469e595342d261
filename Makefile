# `make search` and `make test` do everything on a machine with Python 3.11 or newer and make.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help search test tutorial lint clean
help:
	@echo "make search   install once, then run the built-in search (ARGS='--set search.trials=50')"
	@echo "make test     install once, then run every check and test"
	@echo "make tutorial runs the notebook in docs/ from its first cell to its last"
	@echo "make lint     ruff, mypy and import-linter alone"
	@echo "make clean    remove the environment and caches; runs/ stays"

search: $(STAMP)
	$(BIN)/augury search $(ARGS)

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

tutorial: $(STAMP)
	$(BIN)/python -m pytest -m slow tests/search/test_guides.py -k notebook

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The stamp is written last: an install that was interrupted is done again, over what is there,
# and from nothing where not even pip runs.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Augury needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	@echo "Installing into .venv: several GB the first time, mostly PyTorch."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist
