# `make demo` and `make test` set everything up by themselves on a machine that has Python, pip and a compiler.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-rest test-all coverage lint docs links audit hostile fuzz kills load visitors scale lowest dist smoke sbom bench gpu clean

setup: .venv/.ready

# What runs is compiled when it runs: --no-compile halves the time of an installation.
.venv/.demo: pyproject.toml packages/pocket/pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --editable packages/pocket --editable ".[demo]"
	touch $@

.venv/.ready: .venv/.demo
	$(BIN)/pip install --quiet --no-compile --editable ".[dev]"
	touch $@

demo: .venv/.demo
	$(BIN)/rmadapter demo --out runs/demo

# Of the tests: a process a core, of one thread, as several threads slow tiny models down.
test: setup  # at most five minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal

test-rest: setup  # what `make test` leaves out for its time; .ci/run runs both
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile -m "ci and not slow"

test-all: setup  # also those marked slow
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal -m ""

coverage: setup  # of lines and branches, in build/coverage; ARGS as `tests/data` or `-m ""`
	rm -rf build/coverage
	mkdir -p build/coverage
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -n auto --dist worksteal -m "not slow" $(ARGS); \
		echo $$? > build/coverage/status
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage json --quiet
	$(BIN)/coverage html --quiet
	$(BIN)/coverage report
	exit $$(cat build/coverage/status)  # of the tests

kills: setup  # ARGS as `--count 300 --minutes 25 --only fit`
	$(BIN)/python -m tests.hostile.kills $(or $(ARGS),--count 200)

load: setup  # `serve` with 50 clients, ten of them hostile; ARGS as `--minutes 1 --workers 2`
	$(BIN)/python -m tests.hostile.load $(ARGS)

visitors: setup  # `app` with 20 visitors who label, while it is killed and started; ARGS as `--minutes 1`
	$(BIN)/python -m tests.hostile.visitors $(ARGS)

scale: setup  # Ray and Optuna, 80 MB of downloads, and the tests that need them, a few minutes
	$(BIN)/pip install --quiet --editable ".[ray]"
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 0 -m "" tests/support/test_cluster.py tests/bench/test_ray.py \
		tests/predict/test_ray.py tests/rmadapter_research/test_tune.py \
		tests/rmadapter_research/test_search_space.py tests/cli/test_runs.py

lowest:  # the tests with the lowest version that each bound allows, in an environment of their own
	rm -rf build/lowest
	$(PYTHON) -m venv build/lowest
	build/lowest/bin/pip install --quiet uv
	echo "rmadapter-pocket @ file://$(CURDIR)/packages/pocket" > build/lowest.in
	build/lowest/bin/uv pip compile --quiet --resolution lowest-direct --extra dev \
		--python build/lowest/bin/python --output-file build/lowest.txt pyproject.toml build/lowest.in
	build/lowest/bin/uv pip install --quiet --python build/lowest/bin/python \
		--requirement build/lowest.txt --editable .
	OMP_NUM_THREADS=1 build/lowest/bin/pytest -n auto --dist worksteal -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	for system in win32 darwin; do \
	  $(BIN)/mypy --platform $$system --cache-dir .mypy_cache/$$system src || exit 1; \
	done  # nothing that a system lacks is used without a question
	$(BIN)/lint-imports
	$(BIN)/python tools/statements.py

docs: setup  # the site, into build/site; a warning is an error
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/site

links: setup  # asks the sites that pages link to; fails for dead links, and so for all without internet
	$(BIN)/sphinx-build -q -b linkcheck docs build/links

audit: setup  # known holes in what is installed; skipped, and said so, where nobody can be asked
	$(BIN)/python tools/audit.py $(ARGS)

hostile: setup  # ARGS as `--count 500 --kinds sets,runs --json`
	$(BIN)/python -m tests.hostile $(ARGS)

fuzz: setup  # MINUTES=30 and ARGS as `--targets csv,jsonl`; failing inputs stay in build/fuzz
	$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),30) $(ARGS)

dist: setup  # wheels and source archives of both packages in dist/, checked
	$(BIN)/pip install --quiet --editable ".[release]"
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m build --outdir dist packages/pocket
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

smoke:  # the wheel of dist/ in fresh environments: PYTHONS="python3.10 python3.14"
	set -e; for python in $(or $(PYTHONS),$(PYTHON)); do \
	  rm -rf build/smoke; $$python -m venv build/smoke; build/smoke/bin/pip install --quiet dist/*.whl; \
	  $(PYTHON) tools/smoke.py build/smoke/bin/python; \
	done; rm -rf build/smoke

sbom: setup  # what is installed in .venv, in the format of CycloneDX, in build/sbom.json
	$(PYTHON) -m venv build/sbom
	build/sbom/bin/pip install --quiet "cyclonedx-bom>=7"
	build/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
		--output-file build/sbom.json $(BIN)/python

bench: setup
	$(BIN)/python benchmarks/train_step.py --backbone ViT-B-16/none --classes 50 200 --json

gpu: setup  # on a machine with a GPU: its rates, rows and fits, then the tests that need one; ARGS as `--minutes 20`
	$(BIN)/python benchmarks/gpu.py $(ARGS)
	$(BIN)/pytest -n 0 -m gpu

clean:
	rm -rf .venv build dist runs/demo
