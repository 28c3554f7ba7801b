# make demo | eval | retrain | test | lint | bench | help.  Everything runs in .venv, made on first use from constraints.txt.

PYTHON  ?= python3.11
DOMAIN  ?= both
QUERIES ?= 200
SEEDS   ?= 1
PLANS   ?=
N       ?= 300
BIN     := .venv/bin
STAMP   := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help install demo eval retrain test test-fast lint audit audit-if-online conformance bench bench-gateway clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(STAMP): constraints.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "needs Python 3.11: $(PYTHON) not found (set PYTHON=...)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --progress-bar on "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install -q uv==0.13.9
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --no-deps --compile-bytecode -r constraints.txt
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --no-deps -e .
	@touch $@

install: $(STAMP)  ## create .venv with the pinned packages

demo: $(STAMP)  ## route held-out tasks through a local Ray Serve cluster (DOMAIN=words|scan, QUERIES=200)
	$(BIN)/r2-serve demo --domain $(DOMAIN) --queries $(QUERIES) --out runs/demo

EVAL := $(BIN)/r2-serve eval run -p all --limit $(N) --set-aside

eval: $(STAMP)  ## every policy on the embedded pool, SCAN and word problems: tables and a page (N=300 tasks each)
	$(EVAL) -b scan -d simple --out runs/eval/scan-simple-$(N)
	$(EVAL) -b scan -d length --out runs/eval/scan-length-$(N)
	$(EVAL) -b words -d test --out runs/eval/words-$(N)
	$(BIN)/r2-serve eval report --brief $(foreach run,scan-simple scan-length words,runs/eval/$(run)-$(N)) \
	  --html runs/eval/report-$(N).html --json runs/eval/report-$(N).json

retrain: $(STAMP)  ## the embedded routers from nothing but their workers, minutes on two cores (DOMAIN=words|scan, SEEDS=1)
	$(BIN)/r2-train retrain --domain $(DOMAIN) --seeds $(SEEDS) --out runs/retrain

test: $(STAMP)  ## every tier that needs no GPU
	$(BIN)/pytest -q
	$(BIN)/pytest -q -m "ray or engine or sandbox or train"

test-fast: $(STAMP)  ## no Ray, no torch, no network: two to three minutes on two cores
	$(BIN)/pytest -q

lint: $(STAMP)  ## style, types, layers, unsafe calls
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit -q -r r2_serve r2_train -c pyproject.toml

audit: $(STAMP)  ## known vulnerabilities of the pinned packages (asks PyPI, then OSV; fails where neither answers)
	$(BIN)/python -m tests.audit

audit-if-online: $(STAMP)  ## the same, but where neither answers it says "NOT CHECKED" and goes on (what CI runs)
	$(BIN)/python -m tests.audit --if-online

conformance: $(STAMP)  ## other makers' clients and OpenAI's own description against the endpoint (installs 1 GB under runs/)
	$(BIN)/python -m tests.conformance.run

bench: $(STAMP)  ## DAG scheduling on real plan shapes: make bench PLANS=plan_shapes.jsonl
	@test -n "$(PLANS)" || { echo "name the graphs: make bench PLANS=FILE (JSONL rows: num_steps, edges [[from, to], ...])"; exit 1; }
	$(BIN)/python benchmarks/dag.py --plans $(PLANS) --out runs/bench/dag.json
	$(BIN)/python benchmarks/eval_throughput.py --out runs/bench/eval_throughput.json

bench-gateway: $(STAMP)  ## what the router adds to a request, beside LiteLLM's proxy (installs 0.6 GB under runs/)
	test -x runs/litellm/bin/litellm || { $(PYTHON) -m venv runs/litellm && runs/litellm/bin/pip install -q 'litellm[proxy]==1.106.2'; }
	$(BIN)/python -m benchmarks.gateway --litellm runs/litellm/bin/litellm --out runs/bench/gateway.json

clean:  ## remove .venv and runs
	rm -rf .venv runs
