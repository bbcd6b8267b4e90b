# Python 3.11 (or newer) and make are all a fresh machine needs: every target sets up what it lacks.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BROWSER_STAMP := $(VENV)/.browser
NEURAL_STAMP := $(VENV)/.neural
# Flower and the server want different versions of the same web libraries (docs/federated.md).
FEDERATED := .venv-federated
FEDERATED_STAMP := $(FEDERATED)/.installed
# On an ordinary Linux machine the index gives torch with CUDA, gigabytes of it; TORCH_INDEX=URL names an index with the build without (docs/encoders.md).
TORCH_INDEX ?=
DEMO := demo
DATA ?=

.PHONY: setup demo test browser lint bench models docs wheelhouse clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (some minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cluster,corpora,shap,encoders,postgres,serve,tracing,anchor,dev]'
	@touch $@

demo: setup
	@$(BIN)/clinical-ser demo --output $(DEMO)

test: $(NEURAL_STAMP) $(FEDERATED_STAMP)
	$(BIN)/python -m pytest -n auto --ignore tests/federated
	$(FEDERATED)/bin/python -m pytest -n auto tests/federated tests/cli/test_node.py

$(FEDERATED_STAMP): pyproject.toml constraints-federated.txt
	@test -x $(FEDERATED)/bin/python || $(PYTHON) -m venv $(FEDERATED)
	@echo "Installing into $(FEDERATED) (some minutes the first time) ..."
	@$(FEDERATED)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-federated.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[federated,adapter]' pytest pytest-xdist hypothesis opacus
	@touch $@

# torch is needed to export and train encoders, and so by their tests; the demo and everything that serves does without.
$(NEURAL_STAMP): $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[neural]'
	@touch $@

# Chromium has to be there (Debian: apt-get install chromium); without it these tests fail here and are skipped by `make test`.
browser: $(BROWSER_STAMP)
	CLINICAL_SER_BROWSER=required $(BIN)/python -m pytest tests/reports/test_in_browser.py tests/api/test_page_in_browser.py

$(BROWSER_STAMP): $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[browser]'
	@touch $@

lint: $(NEURAL_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	@test -n "$(DATA)" || { echo "Say where the recordings are: make bench DATA=path/to/corpora (docs/benchmarks.md)"; exit 2; }
	$(BIN)/python -m benchmarks $(DATA)

models: setup
	@test -n "$(DATA)" || { echo "Say where EmoDB is: make models DATA=path/to/emodb"; exit 2; }
	$(BIN)/python tools/ship_models.py --emodb $(DATA) --work build/models

# For a machine without internet: every wheel that serving needs, of the versions that were tested (docs/hospital-it.md).
wheelhouse: setup
	@rm -rf wheelhouse
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --constraint constraints.txt --wheel-dir wheelhouse '.[serve,postgres,anchor,tracing]'
	@cp constraints.txt wheelhouse/
	@echo "wheelhouse/ holds $$(ls wheelhouse/*.whl | wc -l) wheels; copy it over, then: pip install --no-index --find-links wheelhouse --constraint wheelhouse/constraints.txt 'clinical-ser[serve]'"

docs: setup
	$(BIN)/python -m clinical_ser.features.catalogue > docs/features.md
	$(BIN)/python tools/report_pictures.py docs/pictures

clean:
	rm -rf $(DEMO) $(FEDERATED) build dist wheelhouse .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
