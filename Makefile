# Two commands do everything on a fresh machine: `make demo` and `make test`.
# The first interpreter that really runs and is new enough (a version manager's shim may exist and not run).
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
JOBS ?= 2
RUN ?= runs/tiny

SHARED ?= ../shared/data
comma := ,
.PHONY: demo real test test-all check format bench bench-gpu bench-prune clean help
.DEFAULT_GOAL := help

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## / - /'

$(READY): pyproject.toml .ci/constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 was found"; echo "hint: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c .ci/constraints.txt -e '.[dev]'
	@touch $(READY)

demo: $(READY)  ## run the main job on the toy world: large -> middle -> small
	$(BIN)/minitron run tiny -o $(RUN)

# The teacher, its text and its tasks: MODEL=HuggingFaceTB/SmolLM2-135M DATA=corpus/*.jsonl HELD_OUT=held-out.jsonl from
# the hub and your disk, or the model and the files in $(SHARED) where they are there.
real: $(READY)  ## run the recipe on a real model, SmolLM2-135M -> 100M (about half an hour)
	$(if $(MODEL),,test -d runs/SmolLM2-135M || $(BIN)/python $(SHARED)/smollm2.py runs/SmolLM2-135M)
	$(BIN)/minitron run smollm2-135m-to-100m -o runs/smollm2 --set teacher=$(or $(MODEL),runs/SmolLM2-135M) \
	  --set data='$(or $(DATA),$(SHARED)/text/*_train.jsonl)' --set held-out='$(or $(HELD_OUT),$(SHARED)/text/*_eval.jsonl)' \
	  $(if $(MODEL),,--set figures.include=$(SHARED)/real_tasks --set figures.tasks=real_arc_easy$(comma)real_lambada)
	$(BIN)/minitron report runs/smollm2

test: $(READY)  ## run the tests but the slow ones
	$(BIN)/python -m pytest -q -n $(JOBS) -m "not slow"

test-all: $(READY)  ## run all tests
	$(BIN)/python -m pytest -q -n $(JOBS)

check: $(READY)  ## lint, format check and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## format the code
	$(BIN)/ruff check --fix -q .
	$(BIN)/ruff format -q .

bench: $(READY)  ## run the benchmarks
	$(BIN)/python -m tests.benchmarks

bench-gpu: $(READY)  ## what a GPU has to show, into gpu.json; again goes on, PART=1 to 4, MODEL=SmolLM2-135M, TINY=1 runs on the CPU
	$(BIN)/python -m tests.benchmarks.gpu $(if $(PART),--part $(PART)) $(if $(MODEL),--model $(MODEL)) $(if $(TINY),--tiny) --output $(or $(OUT),gpu.json)

bench-prune: $(READY)  ## the pruning benchmark alone; SIZE=8b writes and cuts a checkpoint of 16 GB
	$(BIN)/python -m tests.benchmarks.prune --size $(or $(SIZE),1.2b)

clean:  ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
