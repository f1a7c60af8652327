# Everything runs from .venv, which the targets make themselves. An offline machine needs it made once.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
BENCH  := .venvs/bench
STORES := .venvs/stores
AXE    := 4.14.1
AZURITE := build/azurite/node_modules/azurite/package.json
# Attacks, what counts money on every path, answers of any bytes, and every argument that may come to nothing: they take
# minutes, so `make test-safety` runs them.
SAFETY := $(addprefix tests/integration/,attacks money test_fuzz.py test_rendering.py)

# Airflow is compiled once, not in each of the many processes that import it, whatever the environment says.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo ui test test-safety test-heavy check docs postgres redis chromium test-live test-distributed \
  test-stores test-browser test-a11y fuzz chaos mutation bench test-compat test-loops test-wheel release clean

help: ## Show the targets
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/\1\t\2/p' Makefile | expand -t 14

demo: $(READY) ## Make images with a real Airflow, no API key needed
	@$(BIN)/python -m scripts.demo

ui: $(READY) ## Open Airflow's pages with sample runs at http://localhost:8080, no API key needed; PORT=8081
	@$(BIN)/python -m scripts.ui --port $(or $(PORT),8080)

test: check ## Run check, then the tests
	$(BIN)/python -m pytest -n 4 --dist loadfile tests/unit tests/integration $(addprefix --ignore=,$(SAFETY))

test-safety: $(READY) ## Run the failure matrix's rows that need no live Airflow, what else counts money, and the attacks
	rm -rf $(addprefix build/matrix/,gateway storage time shards)
	$(BIN)/python -m pytest -n 4 --dist load tests/matrix $(SAFETY)

test-heavy: $(READY) ## Kill, starve and weigh batches of up to ten thousand images; ITEMS=100 for a tenth of it
	ITEMS=$(or $(ITEMS),1000) $(BIN)/python -m pytest -n 2 --dist loadfile -rP tests/heavy

check: $(READY) ## Run the linters, the type checker, the rules of the structure and the docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell airflow_provider_geminiimg benchmarks docs example_dags scripts tests *.md
	$(BIN)/mypy airflow_provider_geminiimg scripts tests
	$(BIN)/lint-imports
	$(BIN)/python -m scripts.check_modules
	$(BIN)/python -m scripts.architecture
	$(MAKE) --no-print-directory docs

docs: $(READY) ## Build the docs into docs/_build/html; a warning is an error
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html

test-live: $(READY) postgres ## Run the tests that need a real scheduler and triggerer; CORE=1 for what .ci/run runs; ROWS='task or triggerer'
	rm -rf $(addprefix build/matrix/,processes airflow)
	$(BIN)/python -m pytest tests/live $(if $(CORE),-m core) $(if $(ROWS),-k "$(ROWS)")

test-distributed: $(READY) postgres redis ## Kill workers and triggerers of a distributed Airflow (Celery, Redis, S3) that makes 5,000 images; SHORT=1 for what .ci/run runs
	SHORT=$(SHORT) $(BIN)/python -m pytest -rP tests/distributed

test-stores: $(STORES)/.ready $(AZURITE) ## Run the storage tests on all kinds of stores: disk, S3 (moto, SeaweedFS), Google Cloud Storage, Azure
	STORES='disk s3 seaweed gs abfs' $(STORES)/bin/python -m pytest tests/unit/core/storage tests/stores

test-browser: $(READY) chromium ## Look at the gallery with a real Airflow and a real browser; SCREENSHOTS=1 for the docs
	$(BIN)/python -m pytest tests/browser --ignore=tests/browser/test_accessibility.py

test-a11y: $(READY) chromium ## Check the gallery with axe-core, light and dark
	npm install --silent --no-save --no-package-lock --prefix build/axe axe-core@$(AXE)
	$(BIN)/python -m pytest tests/browser/test_accessibility.py

fuzz: $(READY) ## Feed whatever reads what others wrote with 100,000 examples each; EXAMPLES=20000
	FUZZ_EXAMPLES=$(or $(EXAMPLES),100000) $(BIN)/python -m pytest -n auto --dist load --durations=0 tests/integration/test_fuzz.py

chaos: $(READY) postgres ## Kill processes of a real Airflow at random and count the money; ROUNDS=50 SEED=7
	@$(BIN)/python -m scripts.chaos --rounds $(or $(ROUNDS),3) --seed $(or $(SEED),12)

mutation: $(READY) postgres ## Take out one protection at a time, and see which rows and tests turn red
	@$(BIN)/python -m scripts.mutation

bench: $(BENCH)/.ready $(AZURITE) ## Measure the package beside what one would otherwise write; NAMES='poll parse' QUICK=1
	@$(BENCH)/bin/python -m benchmarks $(NAMES) $(if $(QUICK),--quick)

test-compat: $(READY) ## Run the built wheel on the older Airflows, and on the other Pythons that are here
	@$(BIN)/python -m scripts.test_compat

test-loops: $(READY) postgres $(if $(BROWSER),chromium) ## Run the live tests of loops with the newest Airflow (3.4); CORE=1 for what .ci/run runs; ALL=1 for every live test; BROWSER=1 for the gallery's
	@$(BIN)/python -m scripts.test_loops $(if $(CORE),--core) $(if $(ALL),--all) $(if $(BROWSER),--browser)

test-wheel: $(READY) ## Build into dist and check it; install the wheel with pip into a new environment, and ask Airflow and mypy for it
	scripts/test_wheel

release: test-wheel docs ## Everything of a release into dist, nothing published: wheel, sdist, bills of materials, docs; check the licences
	@$(BIN)/python -m scripts.release

postgres: ## Install Debian's PostgreSQL, unless it is there
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || scripts/as_root apt-get install --quiet --yes --no-install-recommends postgresql

redis: ## Install Debian's Redis, unless it is there
	@command -v redis-server >/dev/null || scripts/as_root apt-get install --quiet --yes --no-install-recommends redis-server

chromium: ## Install Debian's Chromium, unless it is there
	@test -x /usr/bin/chromium || scripts/as_root apt-get install --quiet --yes --no-install-recommends chromium

clean: ## Remove what the targets made
	rm -rf $(VENV) .venvs .demo .ui dist build docs/_build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp lies inside the environment, so that removing the one removes the other. Without uv, pip does the same in more
# time.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt uv && \
	  VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet -c constraints.txt -e '.[dev]' || \
	  $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

$(AZURITE):
	npm install --silent --no-save --no-package-lock --prefix build/azurite azurite@3.35.0

# The whole providers bring 300 packages, and other versions of what everything else runs with. Their storage hooks need
# only those of the extra.
$(STORES)/.ready: pyproject.toml constraints.txt | $(READY)
	test -x $(STORES)/bin/python || $(PYTHON) -m venv $(STORES)
	VIRTUAL_ENV=$(CURDIR)/$(STORES) $(BIN)/uv pip install --quiet -c constraints.txt -e '.[dev,stores]'
	VIRTUAL_ENV=$(CURDIR)/$(STORES) $(BIN)/uv pip install --quiet --no-deps -c constraints.txt \
	  apache-airflow-providers-google apache-airflow-providers-microsoft-azure
	@touch $@

# The peers are many, so they are not in the environment that everything else runs from.
$(BENCH)/.ready: pyproject.toml constraints.txt | $(READY)
	test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	VIRTUAL_ENV=$(CURDIR)/$(BENCH) $(BIN)/uv pip install --quiet -c constraints.txt -e '.[bench]'
	# Airflow's own S3 paths want an older botocore than everything else: a folder for that one peer.
	$(BIN)/uv pip install --quiet --python $(BENCH)/bin/python --target .venvs/s3fs s3fs==2026.9.0 aiobotocore==3.10.0
	@touch $@
