# Everything runs from a fresh clone on Python 3.11+: `make reproduce` (the main job) and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs
RUN := $(BIN)/python -m
CORE := entropy_mechanism attention_bound attention_entropy.essential
REST := interventions entropy_control attention_entropy sigma_reparam_recipes entropy_guided_lm mil_aem context_extension policy_attention

.NOTPARALLEL:  # a study takes every core
.PHONY: venv reproduce reproduce-all chaos chaos-tiny rehearse test lint types docs check-docs clean

$(VENV)/.core: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "entropy_jax needs Python 3.11 or newer: set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.test: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

venv: $(VENV)/.core  ## install what the experiments need into .venv

reproduce: venv  ## the core studies, with their reports
	$(RUN) experiments --out=$(OUT) $(CORE)

reproduce-all: venv  ## every default study
	$(RUN) experiments --out=$(OUT) $(REST) $(filter-out $(REST),$(basename $(CORE)))

# `make study-NAME` runs configs/NAME.py in its default variant, `make study-NAME.VARIANT` in another.
study-%: venv
	$(RUN) experiments --out=$(OUT) $*

# Several processes at a time: on processors, and with flags that compile faster.
CHAOS := JAX_PLATFORMS=cpu XLA_FLAGS="--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false" $(RUN) experiments.chaos

chaos: venv  ## the reliability matrix: real runs killed, stopped, damaged; the table is in the report
	$(CHAOS) --config=configs/chaos.py --workdir=$(OUT)/chaos
	@echo "Open $(OUT)/chaos/report.html"

chaos-tiny: venv  ## the same trials with a few cases each, in minutes
	$(CHAOS) --config=configs/chaos.py:tiny --workdir=$(OUT)/chaos_tiny

rehearse: venv  ## every block of TPU_SETUP.md that can be rehearsed on one machine
	$(BIN)/python tools/rehearse_setup.py

lint: $(VENV)/.test
	$(BIN)/ruff check .

types: $(VENV)/.test
	$(BIN)/mypy

test: lint types  ## lint and types gate the tests
	$(RUN) pytest -n 2 --dist loadfile --no-loadscope-reorder

docs: venv  ## METHODS.md is generated from the catalog
	$(RUN) entropy_jax.document > METHODS.md

clean:
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache $(OUT)
