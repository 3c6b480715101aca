# Everything a newcomer needs, from a clone on Debian or Ubuntu: `make lab`, `make test`, `make help`.
NODES ?= 3
PODS ?= 2
ARGS ?=
# Tests at a time; the namespace tiers share the kernel's tables, so more than the cores does not help.
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
# Namespaces need root; the settings that name a lab must survive sudo.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env=TORTIE_LAB_NAME,TORTIE_LAB_DIR)

.PHONY: help lab lab-down compose-lab compose-lab-down test unit bench check format setup setup-lab setup-test clean
.DEFAULT_GOAL := help

help: ## Show this text
	@echo 'Usage: make TARGET [NODES=3] [PODS=2] [ARGS=...]'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

lab: setup-lab ## Build a lab in network namespaces and prove it by ping [NODES, PODS]
	@$(AS_ROOT) $(BIN)/tortiectl lab up --nodes $(NODES) --pods $(PODS) $(ARGS)

lab-down: setup ## Remove the lab: nothing of it is left
	@$(AS_ROOT) $(BIN)/tortiectl lab down

compose-lab: setup ## Build images, start the lab of docker-compose.yml, prove and break it [ARGS=--observe]
	@$(BIN)/python -m agent.lab.compose up --faults $(ARGS)

compose-lab-down: setup ## Remove that lab; its images stay
	@$(BIN)/python -m agent.lab.compose down

test: setup-test ## Run the checks and every test; as root also those in namespaces [ARGS for pytest]
	@$(MAKE) --no-print-directory check
	$(BIN)/pytest -n $(WORKERS) --dist loadfile $(ARGS)

unit: setup ## Run the tests that need no root, no etcd and no peers: under a minute
	$(BIN)/pytest tests/unit tests/stories tests/golden -n $(WORKERS) $(ARGS)

bench: setup-test ## Measure, beside BIRD on this machine: one table, and bench.json [ARGS]
	$(AS_ROOT) $(BIN)/python -m tests.bench $(ARGS)

check: setup ## Lint, format check, types, import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy --explicit-package-bases --namespace-packages tests/bench deploy/grafana
	$(BIN)/lint-imports

format: setup ## Bring the code into the house's format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

setup: ## Only the virtual environment with the project in it
	@sh deploy/lab/setup.sh venv

setup-lab:
	@sh deploy/lab/setup.sh lab

setup-test:
	@sh deploy/lab/setup.sh test

clean: ## Remove the virtual environment and every cache
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
