# Every target prepares what it needs: on a fresh machine `make demo` or `make test` is enough.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long cosim formal bench check lint format typecheck imports bitstreams docs figures accuracy gallery tutorials site linkcheck wheel clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## make .venv with all that SAT needs (and a C++ compiler, if there is none)

$(STAMP): pyproject.toml constraints.txt tools/setup.sh
	bash tools/setup.sh $(PYTHON) $(VENV)
	@touch $@

demo: $(STAMP) ## train digits, first steps on the simulated RTL, beside dense; ends with a table
	$(BIN)/sat demo

test: $(STAMP) ## all tests but the long sweeps
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-long: $(STAMP) ## the sweeps that take hours
	$(BIN)/python -m pytest -m long

cosim: $(STAMP) ## the cocotb benches over the real AXI ports
	$(BIN)/python -m pytest tests/cosim

formal: $(STAMP) ## prove blocks of the RTL with SymbiYosys and Z3
	$(BIN)/python tests/formal/proofs.py

bench: $(STAMP) ## speed of the golden model, the simulated RTL and the cycle model
	$(BIN)/python benchmarks/bench_golden.py
	$(BIN)/python benchmarks/bench_rtl.py
	$(BIN)/python benchmarks/bench_cycles.py
	$(BIN)/python benchmarks/bench_layer.py
	$(BIN)/python benchmarks/bench_ports.py
	$(BIN)/python benchmarks/bench_roofline.py
	$(BIN)/python benchmarks/bench_schedules.py
	$(BIN)/python benchmarks/bench_offload.py
	$(BIN)/python benchmarks/bench_quick.py

check: lint typecheck imports ## lint, formatting, types, and that imports run one way

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## format the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Type checkers do not see through an editable install of mapped folders: check a plain copy.
typecheck: $(STAMP)
	rm -rf build/lib build/typed
	$(BIN)/pip install -q --no-deps --target build/typed .
	$(BIN)/mypy -p sat

# The same plain copy; the contract stands in pyproject.toml.
imports: typecheck
	PYTHONPATH=build/typed $(BIN)/lint-imports --no-cache

docs: $(STAMP) ## write the generated pages of docs/
	$(BIN)/python tools/generate_docs.py

bitstreams: $(STAMP) ## bitstreams of both boards in out/, reports in docs/bitstreams/ (hours)
	$(BIN)/sat synth ulx3s-85f --array 2x2 --clock 25
	$(BIN)/sat synth ulx3s-85f --array 4x4 --clock 50 --memory sdram --seed 2
	$(BIN)/sat synth ulx3s-85f --array 5x4 --clock 25 --memory sdram --seed 2
	$(BIN)/sat synth colorlight-i9 --array 2x2 --clock 25
	mkdir -p docs/bitstreams && cp out/ulx3s-*.md out/colorlight-*.md docs/bitstreams/

figures: $(STAMP) ## draw the figures of docs/
	$(BIN)/python tools/figures.py

accuracy: $(STAMP) ## schemes and patterns on digits and MNIST-1D, five seeds (hours; goes on where it was stopped)
	$(BIN)/python benchmarks/accuracy.py build/accuracy.jsonl --tasks digits line32
	$(BIN)/python benchmarks/accuracy.py build/accuracy.jsonl --tasks line96 --schemes bdwp bdwp_wu --patterns 2:8
	$(BIN)/python benchmarks/accuracy.py build/accuracy.jsonl --tasks line32 --schemes bdwp_decay bdwp_late bdwp_end bdwp_wu_end --patterns 2:8

gallery: $(STAMP) ## each method's picture by its demo (METHODS="s4d lsm": these; minutes each)
	$(BIN)/python tools/gallery.py $(or $(METHODS),--all)

tutorials: $(STAMP) ## run the tutorials and write what they print into their pages
	$(BIN)/python tools/tutorials.py

site: $(STAMP) ## the manual as web pages, in build/site
	$(BIN)/pip install -q -c constraints.txt -e '.[site]'
	$(BIN)/python tools/site.py

linkcheck: $(STAMP) ## ask for every address in the manual, papers too (needs the net)
	$(BIN)/python tools/links.py --external

wheel: $(STAMP) ## build the wheel
	rm -rf build/lib && $(BIN)/pip wheel -q --no-deps -w dist .

clean: ## remove what was built, keep .venv
	rm -rf build dist out *.egg-info
