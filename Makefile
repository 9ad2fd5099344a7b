# The commands of this checkout. Each brings what it needs into .venv, and says so where it installs Debian packages.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# Ansible does not run under a locale that is not installed; `locale` complains of one.
ifneq ($(shell locale 2>&1 >/dev/null),)
export LC_ALL := C.UTF-8
endif

BIN := $(CURDIR)/.venv/bin
# ansible-lint, molecule and ansible-test call their neighbours by name.
WITH_PATH := env PATH="$(BIN):$$PATH"
PYTEST := $(WITH_PATH) $(BIN)/python -m pytest
UV ?= uv
PYTHON ?= python3
# Passed to what a target runs: make prep ARGS="-i inventories/gh200 --check", make unit ARGS="-k manifest"
ARGS ?=
# How many processes the unit tests run in: make unit WORKERS=0 ARGS="--pdb -k manifest"
WORKERS ?= 2
# A run that names its own inventory needs Docker on those hosts; without one, it is this machine that is prepared.
OTHER_INVENTORY := $(filter -i% --inventory%,$(ARGS))$(ANSIBLE_INVENTORY)

.PHONY: help
help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | \
	    while IFS=$$'\t' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

.PHONY: prep
prep: setup-base ## Take this machine to METRICS_READY (ARGS= goes to ansible-playbook)
	$(if $(OTHER_INVENTORY),,scripts/docker_up.sh)
	$(WITH_PATH) $(BIN)/ansible-playbook playbooks/prep.yml $(ARGS)

# The tests with containers mostly wait, so others run beside them. APART are those of integration that share no container with the rest.
BESIDE := scripts/beside.sh
APART := $(addprefix tests/integration/test_,fleet_rollout.py front.py)
.PHONY: test
test: setup docker-up test-tools-up ## What CI runs: check, sanity, browser, containers and faults
	$(BESIDE) tests/output/test-beside.log $(MAKE) test-beside -- $(PYTEST) -m "not long" --durations=30 \
	    tests/integration $(addprefix --ignore=,$(APART)) $(ARGS)

.PHONY: test-beside
test-beside: test-light
	$(PYTEST) -m "not long" --durations=10 tests/faults $(APART)

.PHONY: test-light
test-light: lint types sanity
	$(PYTEST) -n $(WORKERS) -m "not long" tests/unit tests/fuzz
	$(PYTEST) -m "not long" tests/browser tests/gpu

# What takes minutes: each write killed, or every so many as EVERY says, as many inputs for each parser as EXAMPLES, and what runs at
# once as often as REPETITIONS.
EVERY ?= 1
REPETITIONS ?= 50
EXAMPLES ?= 10000
# Some of the slow lane's parts: make slow PARTS="fuzz kills"
PARTS ?=
.PHONY: slow
slow: setup docker-up test-tools-up ## The slow lane: as many faults, inputs and repetitions as it takes, and the fleet
	$(WITH_PATH) EVERY=$(EVERY) REPETITIONS=$(REPETITIONS) EXAMPLES=$(EXAMPLES) WORKERS=$(WORKERS) scripts/slow.sh $(PARTS)

.PHONY: check
check: setup ## The fast lane: lint, types, unit tests
	$(BESIDE) tests/output/check-beside.log $(MAKE) lint types -- $(MAKE) unit

.PHONY: generate
generate: setup ## Write what follows from the contract: defaults, argument specs, the tables of docs/reference, schema names
	$(BIN)/python scripts/generate.py

# Releases of SGLang; without any, the newest one on the package index.
VERSIONS ?=
.PHONY: upstream
upstream: setup ## Show which assumptions about SGLang a release does not fulfil (VERSIONS="0.5.17 0.5.23")
	$(BIN)/python scripts/upstream.py $(VERSIONS)

.PHONY: lint
lint: setup ## ruff, yamllint, ansible-lint, shellcheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/yamllint --strict .
	$(BIN)/shellcheck --external-sources $$(git ls-files -co --exclude-standard -- '*.sh' .ci/run)
	$(WITH_PATH) $(BIN)/ansible-lint

.PHONY: format
format: setup ## Format the Python files and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: types
types: setup ## mypy
	$(BIN)/mypy

.PHONY: unit
unit: setup ## The unit tests but the slow ones, fuzzing in small
	$(PYTEST) -n $(WORKERS) -m "not slow" tests/unit tests/fuzz $(ARGS)

.PHONY: sanity
sanity: setup ## ansible-test sanity
	scripts/sanity.sh $(ARGS)

.PHONY: integration
integration: setup docker-up test-tools-up ## The tests against real Docker containers
	$(PYTEST) -m "not long" tests/integration tests/faults $(ARGS)

.PHONY: browser
browser: setup test-tools-up ## The report's page in a real browser
	$(PYTEST) tests/browser $(ARGS)

.PHONY: gpu
gpu: ## The acceptance suite on this machine's Hopper GPU, with the Python that has SGLang (PYTHON=)
	$(PYTHON) tests/gpu/acceptance.py --out tests/output/gpu

.PHONY: molecule
molecule: setup docker-up test-tools-up ## Every molecule scenario
	$(PYTEST) tests/molecule $(ARGS)

.PHONY: setup
setup: ## Make .venv with all that the tests need, and the link by which Ansible finds this checkout
	scripts/setup.sh dev

.PHONY: setup-base
setup-base:
	scripts/setup.sh base

.PHONY: docker-up
docker-up:
	scripts/docker_up.sh

.PHONY: test-tools-up
test-tools-up:
	scripts/test_tools_up.sh

.PHONY: lock
lock: ## Compile each requirements file from its *.in with uv (ARGS=--upgrade takes the newest)
	for file in requirements/base requirements/dev requirements/docs execution_environment/requirements; do \
	    $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header $(ARGS) \
	        --output-file $$file.txt $$file.in; \
	done

.PHONY: ee
ee: setup ## Build the execution environment for AWX and ansible-navigator (ARGS= goes to ansible-builder)
	rm -rf .cache/ee
	$(WITH_PATH) $(BIN)/ansible-builder build --context .cache/ee --tag sglang-ee $(ARGS)

.PHONY: docs
docs: setup-base ## Build the site of README.md, docs/ and the modules (ARGS=linkcheck asks for the external links)
	scripts/site.sh $(ARGS)

.PHONY: changelog
changelog: setup-base ## Check the fragments of the changelog (ARGS=release makes CHANGELOG.md of them)
	scripts/docs_tools_up.sh
	$(WITH_PATH) .cache/docs-venv/bin/antsibull-changelog $(or $(ARGS),lint)

.PHONY: clean
clean: ## Remove .venv and everything else that these commands made in the checkout
	rm -rf .venv .ansible .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage tests/output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
