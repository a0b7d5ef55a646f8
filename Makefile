# `make help` lists every target. All of them work on a fresh clone: each sets up what it needs.
PYTHON ?= python3
VENV := .venv
TOOLS := .cache/tools
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
INSTALL := $(PIP) install -c constraints.txt -e . $(addprefix --group ,services gateway worker redis-server)
APT_INSTALL := DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends
PROTOS := $(wildcard protos/winnow/*/v1/*.proto)

# Most tests wait for processes that they have started, so more run at once than there are processors.
SIDE_BY_SIDE := -n 3 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help http-frameworks demo run setup setup-dev gen test test-unit test-integration lint type proto check check-fast format verify-models bench-gpu chaos nano manifests clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

demo: setup ## Start everything, index Python's own documentation, search it, stop everything
	@exec $(PY) -m deploy.local demo

run: setup ## Start Redis, both workers and the gateway until Ctrl-C; DATA=folder keeps what is indexed
	@exec $(PY) -m deploy.local run $(if $(filter command,$(firstword $(origin DATA))),--data "$$DATA")

setup: $(VENV)/.setup winnow/.generated ## Create .venv with what `make run` needs, and generate the stubs

setup-dev: $(VENV)/.setup-dev winnow/.generated ## The same with what tests, lint and benches need

gen: winnow/.generated ## Generate the Python stubs from protos/

test: setup-dev $(TOOLS)/.tried ## Run all tests: real Redis, real processes; T=tests/unit/engine only some
	$(PY) -m pytest $(if $(T),$(T),$(SIDE_BY_SIDE))

test-unit: setup-dev ## Run the unit tests only
	$(PY) -m pytest tests/unit

test-integration: setup-dev $(TOOLS)/.tried ## Run the tests that start processes
	$(PY) -m pytest tests/integration tests/faults tests/clients

http-frameworks: setup-dev ## Run the README's lines for LangChain, LlamaIndex, Haystack and LiteLLM, as PyPI has them
	HTTP_FRAMEWORKS=1 $(PY) -m pytest tests/clients/test_http_frameworks.py

manifests: setup-dev $(TOOLS)/.tried ## Render, validate and run the Kubernetes manifests
	$(PY) -m pytest tests/deploy

lint: setup-dev ## Check style
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: setup-dev ## Put code into shape
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

type: setup-dev ## Check types, strictly
	$(VENV)/bin/mypy

proto: setup-dev ## Lint the contract, and refuse what would break callers of the last release
	$(VENV)/bin/buf lint
	$(VENV)/bin/buf format --diff --exit-code
	sh protos/breaking.sh $(VENV)/bin/buf

check-fast: lint type test-unit ## Style, types and the unit tests: before each commit

check: lint type proto test ## All that CI runs

verify-models: setup ## Load the real 0.6B pair from the hub and check the model cards' numbers
	@$(PY) -m bench verify-models

bench-gpu: setup-dev ## Measure everything on a CUDA device, in under nine minutes; OUT=folder keeps the results there
	@PYTHON="$(PY)" sh bench/gpu.sh $(if $(filter command,$(firstword $(origin OUT))),"$$OUT")

chaos: setup-dev ## Measure how everything holds under load and faults, in twelve minutes; ROW="kill freeze" only some
	@$(PY) -m bench chaos $(if $(filter command,$(firstword $(origin ROW))),$(ROW)) $(if $(filter command,$(firstword $(origin SECONDS))),--seconds $(SECONDS))

nano: setup-dev ## Make the bundled nano checkpoints from scratch (under an hour on two cores)
	$(PIP) install -c constraints.txt --group training
	$(PY) -m training

clean: ## Remove what was generated or installed here
	rm -rf $(VENV) winnow build .cache *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "winnow needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 …")'
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.setup: pyproject.toml setup.py constraints.txt | $(VENV)/bin/python
	@echo "installing packages into $(VENV) (a few minutes the first time)"
	@$(PIP) install -c constraints.txt pip # one that knows dependency groups
	@$(INSTALL) grpcio-tools mypy-protobuf
	@touch $@

$(VENV)/.setup-dev: $(VENV)/.setup
	@echo "installing development packages into $(VENV)"
	@$(INSTALL) --group dev
	@touch $@

# Installing generates the stubs; this does it again when a proto changes.
winnow/.generated: $(PROTOS) protos/generate.py $(VENV)/.setup
	@$(PY) protos/generate.py .
	@touch $@

# promtool, for the tests of alerts: Debian's package, unpacked and not installed. Chromium, for the tests of the
# playground: Debian's package, which only root can install, with what drives it. Where they cannot be had, tests skip.
$(TOOLS)/.tried: | $(VENV)/.setup-dev
	@mkdir -p $(TOOLS)
	@command -v promtool >/dev/null || (cd $(TOOLS) && (apt-get download prometheus || (apt-get update && apt-get download prometheus)) \
		&& dpkg -x prometheus_*.deb .) >/dev/null 2>&1 || echo "promtool cannot be had here: the tests of alerts skip"
	@(command -v chromium || $(APT_INSTALL) chromium || (apt-get update && $(APT_INSTALL) chromium)) >/dev/null 2>&1 \
		&& $(PIP) install --target $(TOOLS)/browser -c constraints.txt --group browser \
		|| echo "Chromium cannot be had here: the tests of the playground skip"
	@touch $@
