# Every target runs inside .venv, which `make setup` (implied) creates from pyproject.toml.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
COUNT ?= 10000
SEED ?= 0
MINUTES ?= 10
GPU_FOLDER ?= gpu-models
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format notebooks docs figures bench bench-scale bench-gpu accuracy zoo triton fuzz soak clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## create .venv and install intc with its development tools (no torch)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: $(STAMP)  ## compile the trained digits transformer, check it bit for bit, measure its accuracy
	$(BIN)/python examples/digits/demo.py

test: $(STAMP)  ## run the test suite
	$(BIN)/python -m pytest -q

check: $(STAMP)  ## lint, formatting, strict types, doctests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q --doctest-modules --ignore=intc/integrations intc

format: $(STAMP)  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: $(STAMP)  ## execute examples/notebooks in place; qat_to_artifact needs `pip install -e ".[examples]"`
	$(BIN)/jupyter-execute --inplace examples/notebooks/*.ipynb

docs: $(STAMP)  ## build the documentation into build/site, strictly and for reading offline
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python docs/tools/offline.py build/site
	@echo "open build/site/index.html; to search as well: python3 -m http.server -d build/site"

figures: $(STAMP)  ## draw docs/figures from the operators' own arithmetic
	$(BIN)/python docs/tools/figures.py

bench:  ## time intc against other engines (needs the extras [bench,examples]; installs nothing)
	@test -x $(BIN)/python || { echo "no $(VENV): run make setup, then $(BIN)/pip install -e '.[bench,examples]'" >&2; exit 2; }
	@$(BIN)/python examples/benchmarks/run.py

bench-scale:  ## rows per second in Ray and requests per second (extras [ray,examples]; installs nothing)
	@test -x $(BIN)/python || { echo "no $(VENV): run make setup, then $(BIN)/pip install -e '.[ray,examples]'" >&2; exit 2; }
	@$(BIN)/python examples/embed_docs/demo.py --engine local
	@$(BIN)/python examples/benchmarks/scale.py

bench-gpu:  ## verify and time the models of GPU_FOLDER on this machine's GPU (examples/gpu_check.py build makes them)
	@$(or $(wildcard $(BIN)/python),python3) examples/gpu_check.py run $(GPU_FOLDER) -o gpu.json

accuracy: $(STAMP)  ## accuracy against other int8 engines; needs `pip install -e ".[bench,examples]"`
	$(BIN)/python examples/accuracy/run.py

zoo: $(STAMP)  ## compile and verify all families of models beside int8 peers; needs `pip install -e ".[bench,examples]"`
	$(BIN)/python examples/zoo/run.py

triton: $(STAMP)  ## serve the model repository with a real Triton (60 MB from PyPI into build/triton), compare bits
	test -d build/triton || $(BIN)/python -m pip install --quiet --no-deps --target build/triton nvidia-pytriton "numpy<2"
	INTC_TRITON=build/triton $(BIN)/python -m pytest -q tests/test_requests.py

fuzz: $(STAMP)  ## read mutated artifacts and ONNX files, compile some: make fuzz COUNT=100000 SEED=1
	$(BIN)/python -m tests.fuzz artifacts --count $(COUNT) --seed $(SEED)
	$(BIN)/python -m tests.fuzz models --count $(COUNT) --seed $(SEED)
	$(BIN)/python -m tests.fuzz compilations --count $$(( $(COUNT) / 20 )) --seed $(SEED)

soak: $(STAMP)  ## many threads, sessions and shapes for MINUTES (default 10): equal bits, flat memory
	$(BIN)/python examples/soak.py --minutes $(MINUTES)

clean:  ## remove the environment, caches and outputs
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
