# Every target sets up what it needs in .venv; nothing else on the machine is touched.
PYTHON ?= python3.11
BIN := .venv/bin
TICKETS := afina/examples
DEMO := runs/demo

.PHONY: demo test check check-page sanitise bench clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/ready-dev: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

.venv/ready-page: .venv/ready-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[page]'
	touch $@

.venv/ready-bench: .venv/ready-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	touch $@

## demo: adapt the starter model to customer messages, then compare it with its base on messages it never saw
demo: .venv/ready
	$(BIN)/afina train $(TICKETS)/tickets_train.jsonl --prompt '{message}' --completion '{ticket}' --epochs 2 --out $(DEMO) --overwrite
	$(BIN)/afina eval $(DEMO) $(TICKETS)/tickets_test.jsonl

## test: the test suite
test: .venv/ready-dev
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

## check: everything that must hold before a change is kept
check: .venv/ready-page
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

## check-page: the page in Debian's Chromium on the starter model, with its figures (PICTURES=folder: and its pictures)
check-page: .venv/ready-page
	$(BIN)/afina models pull starter
	$(BIN)/python -m pytest tests/ui/studio/test_chromium.py --starter $(if $(PICTURES),--pictures $(PICTURES))

## sanitise: the kernels' tests under the address and undefined-behaviour sanitisers, where the compiler has them
# The sanitiser's library comes first in the process, and C++'s, whose exceptions it watches, right after it.
SANITISER = $(shell g++ -print-file-name=libasan.so 2>/dev/null)
sanitise: .venv/ready-dev
ifneq ($(wildcard $(SANITISER)),)
	LD_PRELOAD='$(SANITISER) $(shell g++ -print-file-name=libstdc++.so)' ASAN_OPTIONS=detect_leaks=0 $(BIN)/python -m pytest tests/engine --sanitise
else
	@echo "skipped: this machine's compiler has no sanitisers"
endif

# LitGPT's pins exclude our transformers, so this peer has an environment of its own (platformdirs: its memory is
# measured by afina.core).
.venv-litgpt/ready:
	$(PYTHON) -m venv .venv-litgpt
	.venv-litgpt/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	.venv-litgpt/bin/python -m pip install --quiet --disable-pip-version-check litgpt==0.5.13 platformdirs
	touch $@

.venv-xllamacpp/ready:
	$(PYTHON) -m venv .venv-xllamacpp
	.venv-xllamacpp/bin/python -m pip install --quiet --disable-pip-version-check xllamacpp==2026.10.11549
	touch $@

## bench: the figures of the documentation, on this machine, into benchmarks/RESULTS.md (ROWS=file: other examples)
bench: .venv/ready-bench .venv-litgpt/ready .venv-xllamacpp/ready
	$(BIN)/python benchmarks/results.py $(if $(ROWS),--rows $(ROWS))

clean:
	rm -rf .venv .venv-litgpt .venv-xllamacpp runs
