# Two commands do everything on a fresh machine:
#
#   make quickstart    shards, autoencoder, diffusion model, pictures, grades
#   make test          lint, types, import rules, tests
#
# Both make .venv and install into it when pyproject.toml or constraints.txt have changed.
# PYTHON=python3.12 chooses the interpreter that .venv is made with.

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS ?= dev
PYTHON ?= python3
JOBS ?= 2# processes that run tests
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

.PHONY: help install quickstart test bench
.DEFAULT_GOAL := help

help:
	@sed -n '1,7s/^# \{0,1\}//p' Makefile

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null || { \
		echo "Python 3.11 or newer is needed; '$(PYTHON)' is $$($(PYTHON) -c 'import platform; print(platform.python_version())' 2>/dev/null || echo missing)."; \
		echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; } >&2
	@if [ -x $(BIN)/python ] && ! $(BIN)/python -c '$(NEW_ENOUGH)'; then \
		echo "$(VENV) was made with a Python older than 3.11; remove it and call make again." >&2; exit 1; fi
	[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --editable '.[$(EXTRAS)]'
	@touch $@

# The commands of the README, one by one. What is finished is not done again, what was interrupted goes on.
define QUICKSTART
run() { printf '\n$$ %s\n' "$$1"; eval "$$1"; }
train() {
    unfinished=$$(ls -td runs/$$1/*/checkpoints 2>/dev/null | grep -v /last/ | head -n 1)
    if [ -e runs/$$1/last ]; then
        printf '\n$$ python train.py experiment=%s\nfinished before, see runs/%s/last\n' $$1 $$1
    elif [ -n "$$unfinished" ] && ls "$$unfinished" | grep -q '^images_\|ckpt$$'; then
        run "python train.py resume=$${unfinished%/checkpoints}"
    else
        run "python train.py experiment=$$1"
    fi
}
start=$$(date +%s)
run "ldm shapes"
train shapes_vae
train shapes_dit
run "python sample.py run=runs/shapes_dit/last prompts='[a red circle,three blue squares,a green triangle left of a yellow ring,a purple cross above a cyan square]'"
run "ldm evaluate run=runs/shapes_dit/last"
printf '\nquickstart took %s minutes\n' $$((($$(date +%s) - start + 30) / 60))
endef
export QUICKSTART

quickstart: $(STAMP)
	@PATH="$(BIN):$$PATH" sh -euc "$$QUICKSTART"

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy ldm
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist loadfile

# Speed beside others', and a table and benchmarks/all.json of it.
bench: $(STAMP)
	$(BIN)/python benchmarks/run.py
