# `make demo` runs the pipeline on a private Airflow; `make test` runs all tests. Both set up what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# `make demo-prefect` runs the same pipeline on a private Prefect.
.PHONY: demo demo-stop demo-prefect demo-prefect-stop test lint types contracts check install clean screenshot screenshot-prefect

demo: $(STAMP)
	$(BIN)/python devtools/demo.py $(if $(KEEP),--keep) $(DEMO_ARGS)

demo-stop: $(STAMP)
	$(BIN)/python devtools/demo.py --stop

demo-prefect: $(STAMP)
	$(BIN)/python devtools/demo_prefect.py $(if $(KEEP),--keep) $(DEMO_ARGS)

demo-prefect-stop: $(STAMP)
	$(BIN)/python devtools/demo_prefect.py --stop

# Two processes; tests that share an engine run in the same one. TEST_ARGS="-n0 -k …" runs some in this one.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 $(TEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

contracts: $(STAMP)
	$(BIN)/lint-imports

check: lint types contracts test

install: $(STAMP)

# The lock is a constraint, so that a torch wheel from a local folder satisfies it; elsewhere uv takes the CPU build.
$(STAMP): pyproject.toml constraints.txt devtools/install.sh
	PYTHON=$(PYTHON) sh devtools/install.sh $(VENV)
	touch $@

# The pictures of the documentation; both need Chromium. The first needs a demo that was left up, `make demo KEEP=1`, and
# its run page without the page's address in front: make screenshot URL=http://127.0.0.1:… RUN=/dags/flights/runs/….
screenshot: $(STAMP)
	$(BIN)/python devtools/screenshot.py --url $(URL) --path $(RUN) --graph-only --width 1600 --height 300 --scale 1.5 \
		--out docs/flights-graph.png

screenshot-prefect: $(STAMP)
	$(BIN)/python devtools/prefect_retry.py --out docs/prefect-retry.png

clean:
	rm -rf $(VENV) .demo .test dist build
