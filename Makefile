# Everything runs in .venv, which the first target that needs it makes. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DATA ?= out/training-data
MINUTES ?= 90
MEDIA ?= out/demo/media
LAKE ?= out/demo/lake
MODEL ?= tiny

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format train-tiny eval-tiny bench-media bench-pipeline bench-scale bench-candidates \
	fuzz faults verify-checkpoint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## virtual environment, packages, FFmpeg's libraries

$(STAMP): pyproject.toml infra/ffmpeg.sh
	@sh infra/ffmpeg.sh
	@echo "setup: virtual environment and packages in $(VENV) (about 5 GB, once)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
	  || { echo "setup: $(PYTHON) is no Python 3.11 or 3.12; install one and run: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,train]'
	@touch $(STAMP)

demo: $(STAMP) ## dialogue extraction on real media, into a lake under out/demo
	@$(BIN)/python jobs/demo.py

test: $(STAMP) ## all tests (offline, real Ray, real S3 server)
	@$(BIN)/python -m pytest

lint: $(STAMP) ## ruff (format and lint) and mypy
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(STAMP) ## let ruff rewrite the sources
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

train-tiny: $(STAMP) ## fetch the training audio, train the small model for MINUTES, write weights and figures
	@$(BIN)/python -m operators.sam_audio.training.fetch $(DATA)
	@$(BIN)/python -m operators.sam_audio.training.train $(DATA) --out out/train-tiny --minutes $(MINUTES)

eval-tiny: $(STAMP) ## SI-SDR improvement of the small model and of two public denoisers on held-out mixes
	@$(BIN)/python -m operators.sam_audio.training.fetch $(DATA)
	@$(BIN)/python -m operators.sam_audio.training.evaluate $(DATA) --out out/eval-tiny.json

bench-media: $(STAMP) ## range decoding against whole-file decoding, per format
	@$(BIN)/python tests/bench/bench_media.py

bench-pipeline: $(STAMP) ## x real time and peak memory of the whole job on 12 minutes and 3 hours
	@$(BIN)/python tests/bench/bench_pipeline.py

bench-scale: $(STAMP) ## planning and tables at 1,000,000 rows, busy share of 1 to 8 stub actors, memory (20 minutes)
	@$(BIN)/python tests/bench/bench_scale.py

bench-candidates: $(STAMP) ## CPU time and peak memory of one separation with 1 and 8 candidates, and with skipped windows
	@$(BIN)/python tests/bench/bench_candidates.py

fuzz: $(STAMP) ## over 2,000 hostile files, masks and manifests; goes on where it was interrupted (out/fuzz)
	@$(BIN)/python -m pytest -q -s -m fuzz --timeout 7200 tests/fuzz

faults: $(STAMP) ## kill, break and starve a run on three Ray nodes and S3 in every way; table, out/faults.json
	@rm -f out/faults.json
	@$(BIN)/python -m pytest -q -s -m faults --timeout 1500 tests/faults

verify-checkpoint: $(STAMP) ## check the answers of MODEL=facebook/sam-audio-large (or a folder, a URL) on the demo clip
	@$(BIN)/python jobs/verify_checkpoint.py $(MODEL)

clean: ## remove what the targets wrote (not the virtual environment)
	@rm -rf out
