# Everything that a fresh machine needs: python3 (3.11 or newer) and make.
SHELL := /bin/bash -o pipefail
.DEFAULT_GOAL := help
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help demo check test test-all docs lock clean
help:
	@echo "make demo      corpus, shards, pre-training on 2 workers, scores (4 minutes on 2 cores)"
	@echo "make check     format, lint, types, layers, lock, docs"
	@echo "make test      the tests; make test-all adds the slow ones"
	@echo "make docs      docs/configuration.md anew, and the site in site/"
	@echo "make lock      requirements.lock anew from pyproject.toml"

# uv itself comes by pip; all else comes from the lock, with hashes.
$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/python || python3 -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation-package deepspeed -e .
	touch $@

demo/corpus/labels.csv: | $(READY)
	$(BIN)/scaleaudio synth demo/corpus --clips 1200

demo: $(READY) demo/corpus/labels.csv
	$(BIN)/scaleaudio shards build demo/corpus demo/shards --where split=train
	$(BIN)/scaleaudio pretrain configs/quickstart.yaml
	$(BIN)/scaleaudio evaluate runs/quickstart demo/corpus:note,order,glide,timbre --baselines --out demo/evaluation
	$(BIN)/scaleaudio show negatives configs/quickstart.yaml --model runs/quickstart --out demo/negatives.png

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports
	$(BIN)/python tests/check_lock.py
	$(BIN)/python tests/check_docs.py

test: $(READY)
	$(BIN)/pytest -m "not slow"

test-all: $(READY)
	$(BIN)/pytest

docs: $(READY)
	$(BIN)/scaleaudio show keys > docs/configuration.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lock:
	$(BIN)/uv pip compile -q pyproject.toml --group dev --extra http --extra hub --extra mlflow --extra onnx --extra optuna --extra timm --extra wandb --universal --python-version 3.11 --generate-hashes \
	  --no-annotate --no-header --no-emit-index-url -c constraints.txt -o requirements.lock

clean:
	rm -rf .venv demo runs evaluation
