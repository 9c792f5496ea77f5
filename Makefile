# Everything runs from a virtual environment in .venv with the exact versions of requirements.lock.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Where this is set, each of the thousand processes that the tests start would compile all of Gistmill again.
unexport PYTHONDONTWRITEBYTECODE
# How many tests run side by side. Each process gets its share in one piece and takes half of another's rest when it is through:
# so nearly every file stays in one process, for many share a model or a stack, and none is idle at the end. A test marked
# `alone` has no other beside it. Without: make test SIDE_BY_SIDE=0
SIDE_BY_SIDE ?= 2
FAULTS_SIDE_BY_SIDE ?= 3
MUTANTS_SIDE_BY_SIDE ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-finetune demo-experiment test check faults engines gpu hosts coverage docs train-gist-tiny train-gist-tiny-base bench bench-gpu bench-quick bench-faults bench-poison bench-orchestration bench-training bench-rouge soak mutants mutants-short clean

help: ## Print what the targets do
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | awk -F'\t' '{ printf "  make %-16s %s\n", $$1, $$2 }'

setup: $(STAMP) ## Make .venv and install the locked versions

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Gistmill needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

demo: $(STAMP) ## Summarize the bundled dialogues with the embedded stack
	$(BIN)/python examples/demo.py

demo-finetune: $(STAMP) ## Tune the built-in base with LoRA, kill its worker half-way, summarize with the result
	$(BIN)/python examples/demo_finetune.py

demo-experiment: $(STAMP) ## Run the whole notebook on the built-in base, kill a worker on the way, report
	$(BIN)/python examples/demo_experiment.py

test: $(STAMP) ## Run the checks and all tests
	$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest --numprocesses $(SIDE_BY_SIDE) --dist worksteal $(PYTEST_ARGS)

check: $(STAMP) ## Lint, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

faults: $(STAMP) ## Run the whole fault list: real processes, servers and links, hurt one by one
	$(BIN)/python -m pytest tests/faults --numprocesses $(FAULTS_SIDE_BY_SIDE) --dist worksteal $(PYTEST_ARGS)

# Exit status 5 says that no test was found.
engines: $(STAMP) ## Run the long tests of the engines: real models, whole data sets (DATA=FILE), hard limits
	$(if $(DATA),TEST_DIALOGUES=$(abspath $(DATA)) )$(BIN)/python -m pytest tests/engines $(PYTEST_ARGS) || test $$? -eq 5

gpu: $(STAMP) ## Run the tests that need an NVIDIA GPU (with a CUDA build of torch)
	$(BIN)/python -m pytest tests/gpu -rs $(PYTEST_ARGS)

hosts: $(STAMP) ## Cut hosts that share nothing off from each other (needs root)
	@# tc and ip may lie where only root's own shell looks.
	PATH="$$PATH:/usr/sbin:/sbin" $(BIN)/python -m pytest tests/hosts -rs

coverage: $(STAMP) ## Run the unit and integration tests and show what they cover
	$(BIN)/python -m pytest tests/unit tests/integration --cov --cov-report=term-missing:skip-covered

docs: $(STAMP) ## Write the generated reference pages anew
	$(BIN)/python scripts/make_docs.py

train-gist-tiny: $(STAMP) ## Train the built-in model again and check it (about ten minutes)
	$(BIN)/python scripts/train_gist_tiny.py
	$(BIN)/python scripts/check_gist_tiny.py

train-gist-tiny-base: $(STAMP) ## Train the built-in base for tuning again and check how far tuning lifts it (about fifteen minutes)
	$(BIN)/python -m scripts.train_gist_tiny_base
	$(BIN)/python -m scripts.check_gist_tiny_base

# A full run rewrites its section of docs/benchmarks.md; one on a file, or of some stages, writes nothing.
bench: $(STAMP) ## Measure engines and the whole system beside every peer (quiet machine, about an hour)
	$(BIN)/python -m benchmarks.generation $(if $(DATA),--data $(DATA)) $(if $(STAGES),--stages $(STAGES))

bench-gpu: $(STAMP) ## Measure the engine graph beside transformers on an NVIDIA GPU (five minutes)
	$(BIN)/python -m benchmarks.cuda

bench-quick: $(STAMP) ## The same in three minutes, with wide limits on ratios, to catch a collapse
	$(BIN)/python -m benchmarks.generation --size quick

bench-faults: $(STAMP) ## Measure what a fault point costs when it is off
	$(BIN)/python -m benchmarks.fault_points

bench-poison: DATABASE ?= sqlite
bench-poison: $(STAMP) ## Measure what one dialogue that kills every worker costs the rest of a fleet (five minutes)
	$(BIN)/python -m benchmarks.poison --database $(DATABASE)

# A full run rewrites its section of docs/benchmarks.md; a short one writes nothing.
bench-orchestration: ITEMS ?= 1000000
bench-orchestration: DATABASE ?= both
bench-orchestration: $(STAMP) ## Measure what Gistmill itself costs, beside plain Celery (over half an hour)
	$(BIN)/python -m benchmarks.orchestration --items $(ITEMS) --database $(DATABASE)

bench-training: $(STAMP) ## Measure training beside the notebook's recipe and a plain Trainer (quiet machine, about forty minutes)
	$(BIN)/python -m benchmarks.training $(if $(DATA),--data $(DATA))

bench-rouge: $(STAMP) ## Measure ROUGE beside rouge_score on the same pairs (quiet machine, two minutes)
	$(BIN)/python -m benchmarks.rouge $(if $(DATA),--data $(DATA))

soak: MINUTES ?= 10
soak: DATABASE ?= sqlite
soak: $(STAMP) ## Hurt a fleet at random for MINUTES, on DATABASE; SEED repeats the schedule
	$(BIN)/python -m tests.soak --minutes $(MINUTES) --database $(DATABASE) $(if $(SEED),--seed $(SEED))

mutants: $(STAMP) ## Break each clause of docs/invariants.md once in a copy; a test must fail each time
	$(BIN)/python -m tests.mutants --jobs $(MUTANTS_SIDE_BY_SIDE)

mutants-short: $(STAMP) ## Break one or two clauses of each rule (what CI runs)
	$(BIN)/python -m tests.mutants --short --jobs $(MUTANTS_SIDE_BY_SIDE)

clean: ## Remove the virtual environment and what demos and tests left
	rm -rf $(VENV) demo-data .pytest_cache .mypy_cache .ruff_cache .hypothesis htmlcov .coverage
