# Two commands do everything: `make book` builds the book, `make test` passes the tests.
# Both set up $(VENV) first, from constraints.txt. To use an environment that you have already
# (conda, say), give its folder: make book VENV=$CONDA_PREFIX

PYTHON ?= python3
VENV ?= .venv
PY = $(VENV)/bin/python
READY = $(VENV)/.seeing-through-models
PORT ?= 8000
CORES := $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 1)

.PHONY: book test serve sync format repository clean
book: $(READY)
	@$(PY) -m lib.book build

test: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(CORES) -m "not built" tests
	$(PY) -m lib.book build
	$(PY) -m pytest -q -rs -m built tests

serve: book
	@echo "http://localhost:$(PORT)/ (stop with Ctrl-C)"
	@$(PY) -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

# After an edit of nbs/NAME.md; `make sync FROM=ipynb` takes over what was edited in Jupyter.
FROM ?= md
sync: $(READY)
	@$(PY) -m lib.book sync --source $(FROM)

format: $(READY)
	@$(PY) -m ruff check --fix-only -q .
	@$(PY) -m ruff format -q .
	@$(PY) -m lib.book sync --source py

repository: $(READY)
	@test -n "$(URL)" || { echo "make repository URL=https://github.com/OWNER/NAME"; exit 2; }
	@$(PY) -m lib.book repository $(URL)

clean:
	rm -rf _build

$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say which one: make PYTHON=python3.11")'
	@test -x $(PY) || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing what constraints.txt pins (a minute or two)"
	@$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt torch
	@$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[book,test]'
	@touch $@
