# On a fresh machine: `make demo` installs into .venv and shows the main job; `make test` runs every check.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow lint format docs matrix clean

demo: $(VENV)/.installed
	$(BIN)/wanlab compare --mode cfg_vs_baseline

# A file's tests stay together in one of two processes: what they share is made once.
test: lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

slow: $(VENV)/.tested
	$(BIN)/python -m pytest -q -m slow

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.tested
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site, into site/: the repository's Markdown and pages from docstrings. The pages load nothing from elsewhere.
docs: $(VENV)/.documented
	rm -rf .site && mkdir .site
	tar -cf - docs examples *.md benchmarks/*.md training/README.md wanlab/embedded/tiny/README.md | tar -xf - -C .site
	$(BIN)/zensical build --clean --strict

# The quick tests on every Python that is here, with the oldest and the newest libraries that pyproject.toml allows:
# each in its own environment under .matrix/. `make matrix CUDA=1` also takes torch builds that bring CUDA (gigabytes).
matrix:
	$(PYTHON) .ci/matrix.py $(if $(CUDA),--cuda) $(TESTS)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.tested: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e '.[test]'
	touch $@ $(VENV)/.installed

$(VENV)/.documented: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) .matrix .site site
