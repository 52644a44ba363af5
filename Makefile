# `make help` lists the targets.
VENV   ?= .venv
PYTHON ?= python3.11
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' memopod/__init__.py)

.DEFAULT_GOAL := help
.PHONY: help bench-webhook setup services control-plane demo test test-artifacts test-argo fuzz bench-why bench-store soak-store chaos bench-writer check format lock reference docs image test-image wheel clean bench-controller chaos-controller

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv from the lock file

$(READY): requirements.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "memopod needs Python 3.11 (with venv); set PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(READY)

# Programs that tests start by themselves, and the Debian packages that they are in.
services: ## install the servers and the browser that tests start (Debian, as root)
	@missing=""; \
	command -v mariadbd >/dev/null || [ -x /usr/sbin/mariadbd ] || missing="$$missing mariadb-server-core"; \
	command -v postgres >/dev/null || ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || missing="$$missing postgresql"; \
	[ -d /usr/lib/x86_64-linux-gnu/libmariadb3/plugin ] || missing="$$missing libmariadb3"; \
	command -v chromium >/dev/null || missing="$$missing chromium"; \
	command -v redis-server >/dev/null || missing="$$missing redis-server"; \
	[ -e /usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1 ] || missing="$$missing faketime"; \
	command -v dockerd >/dev/null || [ -x /usr/sbin/dockerd ] || missing="$$missing docker.io"; \
	command -v debootstrap >/dev/null || [ -x /usr/sbin/debootstrap ] || missing="$$missing debootstrap"; \
	command -v docker-compose >/dev/null || missing="$$missing docker-compose"; \
	command -v mariadb-admin >/dev/null || missing="$$missing mariadb-client"; \
	command -v promtool >/dev/null || missing="$$missing prometheus"; \
	[ -n "$$missing" ] || { echo "services: everything is installed"; exit 0; }; \
	command -v apt-get >/dev/null || { echo "services: no apt-get here; install by hand:$$missing" >&2; exit 1; }; \
	[ "$$(id -u)" = 0 ] || { echo "services: must be root; run: sudo apt-get install --no-install-recommends$$missing" >&2; exit 1; }; \
	apt-get update --quiet && DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends $$missing

control-plane: ## build the etcd and kube-apiserver that tests start (needs Go)
	@tools/control-plane/build

bench-controller: $(READY) control-plane ## measure the controller beside a bare loop on a real API server (3 minutes)
	$(BIN)/python -m benchmarks.controller $(ARGS)

chaos-controller: $(READY) control-plane ## each fault at 50 Pods/s: none refused, none held too long, none lost
	MEMOPOD_CHAOS=1 $(BIN)/python -m pytest -n0 tests/real/test_faults.py --timeout 300 $(ARGS)

demo: $(READY) ## run the example pipeline twice: the second run is reused
	@$(BIN)/memopod demo

# Tests wait for processes more than they compute: two workers a core.
test: export PYTEST_XDIST_AUTO_NUM_WORKERS ?= $(shell echo $$((2 * $$(nproc))))
test: $(READY) ## run the test suite
	$(BIN)/python -m pytest $(ARGS)

test-artifacts: $(READY) control-plane ## damage 10 % of 1,000 artifacts under load, and look at who gets what (minutes)
	MEMOPOD_ARTIFACTS=1000 $(BIN)/python -m pytest -n0 tests/cache_server/test_usable.py tests/real/test_usable.py

test-argo: $(READY) control-plane ## beside Argo's own controller (ARGO_CONTROLLER=path ARGO_VERSION=x.y.z; tests/argo/README.md)
	$(BIN)/python -m pytest -n0 tests/argo $(ARGS)

fuzz: $(READY) ## compare a million keys with what decides them, and fingerprints with Go (SEED=, minutes)
	$(BIN)/python tests/fuzz/fuzz_fingerprints.py $(if $(SEED),--seed $(SEED))
	$(BIN)/python tests/fuzz/fuzz_keys.py $(if $(SEED),--seed $(SEED))

bench-why: export PYTHONPATH := tests/fuzz:tests/steps
bench-why: $(READY) ## measure how fast a miss is explained among 100,000 entries, and whether it is right
	$(BIN)/python benchmarks/why.py

bench-store: $(READY) ## measure the metadata store beside a bare gRPC server and ml-metadata's core
	$(BIN)/python -m benchmarks.store $(ARGS)

soak-store: $(READY) ## a million calls to the metadata store; memory must stay flat
	$(BIN)/python -m benchmarks.store.soak $(ARGS)

bench-webhook: export PYTHONPATH := .
bench-webhook: $(READY) ## measure the webhook beside a server that only reads and allows (ARGS=gate, ...)
	$(BIN)/python benchmarks/webhook $(ARGS)

chaos: $(READY) ## record 10,000 Pods while writers and store are killed again and again (SEED=, minutes)
	$(BIN)/python -m tests.chaos.conduct $(if $(SEED),--seed $(SEED))

bench-writer: $(READY) ## the metadata writer: Pods a second, lag, memory, start (minutes)
	$(BIN)/python -m benchmarks.writer throughput
	$(BIN)/python -m benchmarks.writer throughput --mariadb
	$(BIN)/python -m benchmarks.writer lag
	$(BIN)/python -m benchmarks.writer relist
	$(BIN)/python -m benchmarks.writer memory

check: $(READY) ## run the linters, the type checker and the import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The image's two lists are parts of the first, at the same versions.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
    --custom-compile-command 'make lock'
lock: $(READY) ## resolve the dependencies again into requirements.txt
	$(LOCK) --group dev --group docs pyproject.toml -o requirements.txt
	$(LOCK) --constraint requirements.txt pyproject.toml -o deploy/image/requirements.txt
	$(LOCK) --constraint requirements.txt --group image -o deploy/image/build-requirements.txt

reference: export PYTHONPATH := .
reference: $(READY) ## write the references of settings, commands and the HTTP API, and the dashboard
	$(BIN)/python tools/settings_reference.py
	$(BIN)/python tools/command_reference.py
	$(BIN)/python tools/http_reference.py
	$(BIN)/python tools/dashboard.py

docs: $(READY) ## build the site of docs/ into dist/docs; a link or an anchor that leads nowhere fails
	$(BIN)/sphinx-build --builder dirhtml --fail-on-warning --keep-going --nitpicky --jobs auto --quiet docs dist/docs
	@echo "docs: dist/docs/index.html"

image: ## build the image, as memopod:VERSION
	docker build --file deploy/image/Dockerfile --tag memopod:$(VERSION) --build-arg VERSION=$(VERSION) \
	    --build-arg REVISION=$(shell git rev-parse HEAD) .

test-image: $(READY) ## build the image on a base of Debian's, start each entry point and talk to it (minutes)
	$(BIN)/python -m pytest -n0 --timeout=1200 tests/image

wheel: $(READY) ## build the wheel into dist/
	$(BIN)/python -m build --no-isolation --wheel

clean: ## remove everything that the other targets made
	rm -rf $(VENV) dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
