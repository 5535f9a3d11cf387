# `make demo` and `make test` set everything up themselves; `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test unit check format docs reference dist constraints clean system docker-check

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(INSTALLED)  ## Run a study of 50 trials on the digits in demo/
	@mkdir -p demo
	cd demo && PATH="$(CURDIR)/$(BIN):$$PATH" hpo run --space smooth_lr --trials 50 --dataset digits --iterations 160

test: $(INSTALLED) system  ## Run all tests, with a real PostgreSQL and a real browser
	$(BIN)/python -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder -m 'not alone' $(PYTEST_ARGS)
	$(BIN)/python -m pytest -m alone $(PYTEST_ARGS)

unit: $(INSTALLED)  ## Run the quick unit tests, which need no server and no browser
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m 'not slow' tests/unit $(PYTEST_ARGS)

check: $(INSTALLED)  ## Check format, lint, types and architecture
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_architecture.py

format: $(INSTALLED)  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(INSTALLED)  ## Build the documentation as a site in build/docs; warnings are errors
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs build/docs

reference: $(INSTALLED)  ## Write docs/reference anew from the code
	$(BIN)/python docs/reference/generate.py

dist: $(INSTALLED)  ## Build wheel and sdist in dist/
	$(BIN)/python -m build --no-isolation

docker-check: $(INSTALLED)  ## Check docker/, build the image and run hpo in it (root, Debian, 25 GB; VARIANT=cuda or cpu)
	@[ -x /usr/bin/buildah ] && [ -x /usr/sbin/debootstrap ] \
	  || { apt-get update -qq && apt-get install -qq -y --no-install-recommends buildah debootstrap; }
	$(BIN)/python -m pytest tests/integration/test_docker.py
	PYTHON=$(BIN)/python docker/check-image

constraints: $(INSTALLED)  ## Write the installed versions to constraints.txt
	$(BIN)/pip freeze --exclude-editable > constraints.txt

system:  ## Install the Debian packages that tests use: a browser, Fashion-MNIST, PgBouncer, nginx, namespaces, a C compiler
	@if [ -e /usr/bin/chromium ] && [ -d /usr/share/datasets/fashion-mnist ] && [ -e /usr/sbin/pgbouncer ] && [ -e /usr/sbin/nginx ] \
	  && command -v ip > /dev/null && command -v gcc > /dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
	  chromium dataset-fashion-mnist gcc iproute2 nginx-light pgbouncer > /dev/null; \
	else \
	  echo 'chromium, dataset-fashion-mnist, gcc, iproute2, nginx or pgbouncer is missing; tests that need them are skipped'; \
	fi

clean:  ## Remove the environment and what the demo wrote
	rm -rf $(VENV) demo build dist
