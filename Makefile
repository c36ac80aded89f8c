# `make demo` and `make test` are the only set-up: each makes .venv when it is not there.
PYTHON ?= python3
BIN := .venv/bin
.PHONY: demo test lint bench clean

demo: .venv/installed
	$(BIN)/uqharness demo

test: .venv/installed lint
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/python .ci/import_rule.py
	$(BIN)/python .ci/check_types.py

bench: .venv/installed
	$(BIN)/python -m benchmarks.run $(BENCH_ARGS)

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis

# Installs anew when pyproject.toml changes; the stamp is written last, so a broken install is tried again.
# Every start of Python runs the two files that are compiled here, also where PYTHONDONTWRITEBYTECODE is set.
.venv/installed: pyproject.toml hatch_build.py uqharness.pth uqharness.start
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	$(BIN)/python -m compileall -q uqharness/__init__.py uqharness/harness/hook.py
	touch $@
