# Everything a fresh machine needs: `make demo` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
KILLS ?= 200
CASES ?= 1000000
PREDICTIONS ?= 100000

# Bytecode makes Feast's import twice as fast; an environment that forbids it would slow every command down.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo up test parity check format services services-down chaos ladder receipts batch-kills bench feast-suites lock clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(READY) ## set everything up, push events, watch a prediction move, stop
	@$(BIN)/tiffin demo

up: $(READY) ## the same, and stay
	@$(BIN)/tiffin up

test: $(READY) ## everything that can be tested on this machine
	@$(BIN)/python -m pytest

parity: $(READY) ## online = offline: CASES=1000000 features of every kind held against history and an oracle
	@$(BIN)/tiffin --repo examples/every_function parity --checks $(CASES) --processes 2

check: $(READY) ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(READY) ## format the code
	@$(BIN)/ruff format .

services: $(READY) ## a real Kafka and Valkey on 127.0.0.1
	@$(BIN)/tiffin services up

services-down: $(READY) ## end them
	@$(BIN)/tiffin services down

chaos: $(READY) ## kill everything at random under load, KILLS=200 times, and compare with the log
	@$(BIN)/tiffin chaos --kills $(KILLS) $(if $(SEED),--seed $(SEED))

batch-kills: $(READY) ## kill batch jobs at random while readers read, KILLS=200 times on SQLite and on PostgreSQL
	@$(BIN)/tiffin batch-kills --kills $(KILLS) $(if $(SEED),--seed $(SEED))

ladder: $(READY) ## take away under load what predictions stand on, and see which rung answers
	@$(BIN)/tiffin ladder

receipts: $(READY) ## PREDICTIONS=100000 under load: each has a receipt, and each receipt replays
	@$(BIN)/tiffin receipts-drill --predictions $(PREDICTIONS)

bench: $(READY) ## every figure beside Feast, in one run; QUICK=1 in ten minutes
	@$(BIN)/python -m benchmarks $(if $(QUICK),--quick)

feast-suites: $(READY) ## Feast's own test suites on our stores, and on its own: FEAST_SRC=a source tree of Feast 0.67
	@$(BIN)/tiffin feast-suites "$(FEAST_SRC)"

lock: ## resolve the dependencies anew
	uv pip compile --universal --generate-hashes --no-header --extra dev -p 3.11 pyproject.toml -o requirements.lock

clean: ## remove what was made here, history and models included
	rm -rf $(VENV) feature_repo/data examples/*/data .services .mypy_cache .ruff_cache .pytest_cache

$(READY): requirements.lock pyproject.toml deploy/install.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh deploy/install.sh
	@touch $@
