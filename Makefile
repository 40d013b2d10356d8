# Two commands: `make train` and `make test`. `make PYTHON=python3.12 test` chooses the interpreter; the virtual environment is
# made once and rebuilt only when the interpreter's version or a requirements file changes.
PYTHON ?= python3
WORKDIR ?= runs/digits
DATA ?= ../shared/data/clothing
VENV := .venv
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
RUN := $(VENV)/bin/python
# One worker more than there are cores, and four at most: tests wait for disks and for other processes.
CORES := $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
SUITE := $(RUN) -m pytest -n $(shell expr $(CORES) + 1) --maxprocesses=4 --dist=loadfile --no-loadscope-reorder
CHECK_TYPES := LAMBDANET_CHECK_TYPES=1

.PHONY: install train test quick types exhaustive lint optimised chaos compare study docs clean
.DELETE_ON_ERROR:

# `.venv` with what everything but the tests needs; `source .venv/bin/activate` enters it.
install: $(VENV)/installed-run-$(VERSION)

train: $(VENV)/installed-run-$(VERSION)
	$(RUN) train.py --config=configs/digits.py --workdir=$(WORKDIR)
	$(RUN) eval.py --mode=accuracy --workdir=$(WORKDIR)
	@echo "Report: $(WORKDIR)/report.md and $(WORKDIR)/report.png"

test: $(VENV)/installed-test-$(VERSION)
	$(SUITE) tests

# The part of the suite for every edit: under three minutes.
quick: $(VENV)/installed-test-$(VERSION)
	$(SUITE) -m 'not slow and not exhaustive' tests

# The tests of whatever is annotated, every annotation checked as it runs, shapes of arrays included.
types: $(VENV)/installed-test-$(VERSION)
	$(CHECK_TYPES) $(SUITE) $(addprefix tests/,analysis attention drawing experimental layers models ops) tests/test_type_checker.py \
	  tests/data/test_label_maps.py tests/data/test_pseudo_labels.py tests/test_golden.py tests/test_tasks.py tests/test_*_task.py

# What `make test` takes a covering part of, whole: every preset's counts, every head and detector on
# every family, every recipe's first steps, runs of all tasks on several devices and processes.
exhaustive: $(VENV)/installed-test-$(VERSION)
	$(CHECK_TYPES) $(SUITE) -m exhaustive tests

lint: $(VENV)/installed-test-$(VERSION)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

# Every block and backbone as users compile it, in float32 and bfloat16.
optimised: $(VENV)/installed-test-$(VERSION)
	$(CHECK_TYPES) XLA_FLAGS= $(RUN) -m pytest -n auto --maxprocesses=4 tests/optimised

# Runs killed, interrupted and damaged at random, and a thousand wrong configs: about half an hour.
chaos: $(VENV)/installed-test-$(VERSION)
	$(RUN) -m pytest -s tests/chaos/chaos_*.py

# Every attention block under one recipe; continues where it was interrupted. Writes docs/comparison.md.
compare: $(VENV)/installed-run-$(VERSION)
	$(RUN) -m benchmarks.compare

# Every attention block and the hierarchical families on photographs: three hours on 2 cores at most, then the same
# command continues. Writes docs/study.md. DATA: a folder with train/, validation/ and test/.
study: $(VENV)/installed-run-$(VERSION)
	$(RUN) -m benchmarks.study --data $(DATA) --hours 3

# The site of the documents and docstrings in build/site; a link that leads nowhere is an error.
docs: $(VENV)/installed-docs-$(VERSION)
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict
	@echo "Site: build/site/index.html"

$(VENV)/python-$(VERSION):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "lambdanet needs Python >= 3.11, and '$(PYTHON)' is $(or $(VERSION),not there). Fix: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/installed-run-$(VERSION): requirements.txt | $(VENV)/python-$(VERSION)
	@echo "Installing the packages of requirements.txt into $(VENV): a minute or a few"
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/installed-test-$(VERSION): requirements.txt requirements-test.txt | $(VENV)/python-$(VERSION)
	@echo "Installing the packages of requirements-test.txt into $(VENV): a minute or a few"
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	@touch $@ $(VENV)/installed-run-$(VERSION)

$(VENV)/installed-docs-$(VERSION): requirements-docs.txt | $(VENV)/python-$(VERSION)
	@echo "Installing the packages of requirements-docs.txt into $(VENV)"
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch $@

clean:
	rm -rf $(VENV) .cache .pytest_cache build *.egg-info
