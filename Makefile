# Everything runs in .venv, which the first target that needs it makes. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DATA ?= out/training-data
MINUTES ?= 90
JUDGE_STEPS ?= 8500
STEPS ?= 4000
SPANS ?= out/train-spans/best
MEDIA ?= out/demo/media
LAKE ?= out/demo/lake
MODEL ?= tiny

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format train-tiny eval-tiny ablate-tiny learn-tiny train-judge eval-judge train-spans eval-spans \
	bench-media bench-pipeline bench-scale bench-candidates \
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
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,train,evaluate]'
	@touch $(STAMP)

demo: $(STAMP) ## dialogue extraction on real media, into a lake under out/demo
	@$(BIN)/python jobs/demo.py

test: $(STAMP) ## all tests (offline, real Ray, real S3 server)
	@$(BIN)/python -m pytest -n 2 --dist loadgroup

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

eval-tiny: $(STAMP) ## the small model beside two public denoisers on held-out mixes, against its targets; table and page
	@$(BIN)/python -m operators.sam_audio.training.fetch $(DATA)
	@$(BIN)/python -m operators.evaluation.tiny $(DATA) --out out/eval-tiny.json

ablate-tiny: $(STAMP) ## train the small model anew with one change of its recipe at a time; table (hours)
	@$(BIN)/python -m operators.sam_audio.training.fetch $(DATA)
	@$(BIN)/python -m operators.evaluation.ablate $(DATA) --out out/ablate-tiny

learn-tiny: $(STAMP) ## train the small model from scratch for 600 steps; losses and held-out SI-SDRi as they go; table
	@$(BIN)/python -m operators.sam_audio.training.fetch $(DATA)
	@$(BIN)/python -m operators.evaluation.learning $(DATA) --out out/learn-tiny

train-spans: $(STAMP) ## fetch the training audio, train the small span predictor (STEPS), write weights and figures
	@$(BIN)/python -m operators.sam_audio.training.fetch $(DATA)
	@$(BIN)/python -m operators.sam_audio.training.train_spans $(DATA) --out out/train-spans --steps $(STEPS)

eval-spans: $(STAMP) ## the span predictor in SPANS on held-out mixes: F1, false alarms, what its spans are worth; table
	@$(BIN)/python -m operators.sam_audio.training.fetch $(DATA)
	@$(BIN)/python -m operators.evaluation.eval_spans $(DATA) --span-predictor $(SPANS) --out out/eval-spans.json

train-judge: $(STAMP) ## let separators loose on training mixtures, train the small judge on their scores (JUDGE_STEPS)
	@$(BIN)/python -m operators.sam_audio.training.fetch $(DATA)
	@$(BIN)/python -m operators.sam_audio.training.judge_data $(DATA) out/judge-data --part train --shards 160
	@$(BIN)/python -m operators.sam_audio.training.judge_data $(DATA) out/judge-data --part validation --shards 4
	@$(BIN)/python -m operators.sam_audio.training.train_judge $(DATA) out/judge-data --out out/train-judge --steps $(JUDGE_STEPS)

eval-judge: $(STAMP) ## correlation of the small judge's scores with the truth, on held-out recordings and separators
	@$(BIN)/python -m operators.sam_audio.training.fetch $(DATA)
	@$(BIN)/python -m operators.sam_audio.training.judge_data $(DATA) out/judge-data --part eval --shards 12
	@$(BIN)/python -m operators.sam_audio.training.eval_judge out/judge-data --out out/eval-judge.json

bench-media: $(STAMP) ## range decoding against whole-file decoding, per format
	@$(BIN)/python tests/bench/bench_media.py

bench-pipeline: $(STAMP) ## x real time and peak memory of the whole job on 12 minutes and 3 hours
	@$(BIN)/python tests/bench/bench_pipeline.py

bench-scale: $(STAMP) ## planning and tables at 1,000,000 rows, busy share of 1 to 8 stub actors, memory (35 minutes)
	@$(BIN)/python tests/bench/bench_scale.py

bench-candidates: $(STAMP) ## CPU time and peak memory of one separation with 1 and 8 candidates, and with skipped windows
	@$(BIN)/python tests/bench/bench_candidates.py

fuzz: $(STAMP) ## over 2,000 hostile files, masks and manifests; goes on where it was interrupted (out/fuzz)
	@$(BIN)/python -m pytest -q -s -m fuzz --timeout 7200 tests/fuzz

faults: $(STAMP) ## kill, break and starve a run on three Ray nodes and S3 in every way; table (1 to 2 hours), out/faults.json
	@rm -f out/faults.json
	@$(BIN)/python -m pytest -q -s -m faults --timeout 1500 tests/faults tests/pipeline/test_training_run.py

verify-checkpoint: $(STAMP) ## check the answers of MODEL=facebook/sam-audio-large (or a folder, a URL) on the demo clip
	@$(BIN)/python jobs/verify_checkpoint.py $(MODEL)

clean: ## remove what the targets wrote (not the virtual environment)
	@rm -rf out
