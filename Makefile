# Mini-Stream. Every target does its own set-up; all that is needed is Python 3.11 or newer.
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && break; done)
BIN := .venv/bin
FILE ?=
ARGS ?=

PROTO = s2cs/proto/scistream

.PHONY: help run test soak faults fuzz lint bench proto lock clean install up down deliver test-docker

help:
	@echo "make run [FILE=scan.h5] [ARGS=…]  stream a scan (without FILE: a phantom), reconstruct it, make a report"
	@echo "make test                         run the tests"
	@echo "make soak                         500 sessions, 50 at once, minutes of silence: what they leave behind"
	@echo "make faults                       random kills of servers, proxies and clients in mid-stream"
	@echo "make fuzz                         a minute of a fuzzer's bytes for all that reads messages, addresses, policies"
	@echo "make up, make down                two facilities in containers: a scan from one to the other; end them"
	@echo "make deliver                      in containers, all of delivery: mirrors, tickets, uploads, two placed sites"
	@echo "make test-docker                  run all tests of the containers (needs docker-compose; half an hour)"
	@echo "make lint                         style, types, direction of imports"
	@echo "make bench                        benchmarks, as ratios against peers"
	@echo "make lock                         renew the pinned requirements"
	@echo "make clean                        remove what make made, except output/"

# Where a proxy is installed, the scan goes through two gateways and an encrypted tunnel.
TUNNEL = $(if $(shell PATH="$$PATH:/usr/sbin:/sbin" command -v haproxy),--tunnel)

run: .venv/.installed
	@$(BIN)/ministream run $(FILE) --output output $(TUNNEL) $(ARGS)

test: .venv/.installed-dev
	@$(BIN)/python -m pytest $(ARGS)

# Long runs, with their figures.
soak faults: .venv/.installed-dev
	@$(BIN)/python -m pytest -m $@ -rP $(ARGS)

fuzz: .venv/.installed-fuzz
	@$(BIN)/python -m tests.fuzz.fuzz_control $(or $(ARGS),-max_total_time=60)

# docker-compose 1.29 and Docker's classic builder do as well as their successors
COMPOSE ?= $(shell command -v docker-compose >/dev/null && echo docker-compose || echo docker compose)

up:
	$(COMPOSE) build
	$(COMPOSE) up --exit-code-from ministream $(ARGS)

down:
	$(COMPOSE) down $(ARGS)

# what the receiver of `make up` writes leaves
deliver:
	docker volume create $(or $(RECEIVER_OUTPUT),output_data) >/dev/null
	$(COMPOSE) --env-file configs/delivery.env --profile sync --profile tickets --profile upload --profile placed \
		up --build $(ARGS)

test-docker: .venv/.installed-dev
	@docker info >/dev/null 2>&1 || bash tests/docker/engine.sh
	@$(BIN)/python -m pytest -m docker tests/docker $(ARGS)

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: .venv/.installed-dev
	@for script in benchmarks/bench_*.py; do $(BIN)/python $$script $(ARGS) || exit 1; done

install: .venv/.installed

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed (set PYTHON=/path/to/python3.11)" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "python -m venv failed: on Debian, apt-get install python3-venv" >&2; exit 1; }

.venv/.installed: requirements.txt pyproject.toml | .venv/bin/python
	@echo "Installing Mini-Stream into .venv (first time only) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

.venv/.installed-dev: requirements-dev.txt .venv/.installed
	@echo "Installing the test tools into .venv (first time only) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	@touch $@

.venv/.installed-fuzz: requirements-fuzz.txt .venv/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-fuzz.txt
	@touch $@

proto: .venv/.installed-dev
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. $(PROTO).proto

lock: | .venv/bin/python
	@$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate pyproject.toml -o requirements.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --group dev \
		--extra delivery --extra delivery-brokers --extra delivery-postgres --extra delivery-stores \
		-c requirements.txt pyproject.toml -o requirements-dev.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate \
		--group pyproject.toml:delivery-image -c requirements-dev.txt -o requirements-delivery.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --group fuzz \
		-o requirements-fuzz.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --group pyproject.toml:control \
		-c requirements.txt -o requirements-s2cs.txt

clean:
	rm -rf .venv build *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
