# Everything a person or CI runs; `make` alone lists it. Needs Python >= 3.11 with its venv module, nothing else.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2

bin := $(VENV)/bin
# pip says a lot; these are the lines that show it is alive.
install = $(bin)/python -m pip install --progress-bar off --disable-pip-version-check -c constraints.txt -e
progress = grep --line-buffered -E '^ *(Downloading|Installing|Successfully)'
# One thread a worker: two workers of two threads each on two cores are slower than this.
pytest = OMP_NUM_THREADS=1 $(bin)/python -m pytest

.PHONY: help demo test javascript-client peers-env test-cpus test-slow mutants bench soak wheel check-wheel format clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-17s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.installed ## questions about a receipt, a chart, two pictures, a clip and a stranger's page, answered by the embedded model
	$(bin)/pocketvlm ask examples/receipt.png "What is the total?"
	$(bin)/pocketvlm ask examples/chart.png "Which bar is the highest?"
	$(bin)/pocketvlm ask examples/first.png examples/second.png "Which picture shows a yellow star?"
	$(bin)/pocketvlm ask examples/clip.mp4 "Which way does the circle move?"
	$(bin)/pocketvlm ask examples/strangers/second/groceries.png "What is the total?"
	$(bin)/pocketvlm ask examples/strangers/cafe.png "Extract total, date as JSON."
	@echo 'Your own pictures: $(bin)/pocketvlm serve, then open http://127.0.0.1:8000 in a browser'

test: $(VENV)/.installed-dev ## everything CI checks: ruff, mypy, pytest (JOBS=N workers)
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(pytest) -n $(JOBS)

javascript-client: ## the openai package for JavaScript, for the tests that use the server with it; needs npm
	npm install --prefix tests/server/uses/javascript --no-audit --no-fund

# Each in an environment of its own: they ask for other versions than we do, and one of the other.
peers-env: ## ms-swift and LLaMA-Factory, for the tests in which they run what `tune --emit` writes: 13 GB
	python3 -m venv .peers/swift && .peers/swift/bin/pip install "ms-swift>=4.6" torchvision torchcodec
	python3 -m venv .peers/factory && .peers/factory/bin/pip install "llamafactory>=0.9.5" torchvision
	.peers/factory/bin/pip install "transformers>=5.9,<5.10"  # the first that knows the model is newer than it asks for

test-cpus: $(VENV)/.installed-dev ## parity, kernels, model and engine as other processors compute them: an hour
	$(bin)/python -m pytest -m cpus tests/test_processors.py

test-slow: $(VENV)/.installed-dev ## the tests at the published model's true size: minutes and gigabytes
	$(bin)/python -m pytest -m slow

mutants: $(VENV)/.installed-dev ## one-line faults in a copy of the package, which the tests must notice: minutes
	PYTHONPATH=tests $(bin)/python -m mutants --jobs $(JOBS)

bench: $(VENV)/.installed-dev ## speed against transformers, true size, on this CPU: many minutes, 13 GB of memory
	$(bin)/python benchmarks/against_transformers.py

wheel: $(VENV)/.installed-dev ## dist/: the sdist and the wheel
	$(bin)/python -m hatchling build -d dist

check-wheel: $(VENV)/.installed-dev ## build, install into an empty environment, run its commands there: minutes, and a download of PyTorch
	$(bin)/python .ci/check_wheel.py

soak: $(VENV)/.installed-dev ## ten minutes of a server with good, malformed and abandoned requests: memory, files, counters
	$(bin)/python benchmarks/reliability.py soak --seconds 600

format: $(VENV)/.installed-dev ## mend what ruff can, and write the generated parts of the docs
	$(bin)/ruff check --fix .
	$(bin)/ruff format .
	$(bin)/python docs/generate.py

clean: ## remove the virtual environment, caches and build outputs
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is newer than what it was made from, so nothing is installed twice.
$(VENV)/.installed: pyproject.toml constraints.txt | $(bin)/pip
	$(install) '.[serve,structured]' | $(progress)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(bin)/pip
	$(install) '.[dev,synthetic]' | $(progress)
	@touch $(VENV)/.installed $@

$(bin)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is missing or older than Python 3.11: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
