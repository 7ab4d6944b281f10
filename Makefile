# `make demo` and `make test` do everything on a fresh machine: they make .venv and install into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check bench docs clean

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

# The main job on real photographs that arrive by pip: solar cells, fitted on good ones.
demo: $(READY)
	mkdir -p demo
	$(BIN)/amiss fit patchcore elpv:mono --output demo/solar.amiss
	$(BIN)/amiss evaluate demo/solar.amiss elpv:mono --report demo/report.html
	@echo
	@echo "Open demo/report.html in a browser."

test: check
	$(BIN)/python -m pytest --numprocesses auto --dist loadgroup

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Side by side with anomalib: PEER=path/to/its/python DATA=path/to/a/set/in/MVTec/layout
bench: $(READY)
	$(BIN)/python benchmarks/aupro.py
	$(BIN)/python benchmarks/false_alarms.py
	$(if $(DATA),$(BIN)/python benchmarks/coreset.py --data $(DATA))
	$(if $(and $(DATA),$(PEER)),$(BIN)/python benchmarks/vs_anomalib.py --data $(DATA) --peer-python $(PEER))

# Tables of options in docs/methods, and the picture of the README, made from the code.
docs: $(READY)
	$(BIN)/python docs/make.py

clean:
	rm -rf $(VENV) demo build src/amiss.egg-info
