# Nothing to install but what `./install.sh --test` puts into .venv-test. PYTHON picks another environment.
PYTHON ?= $(if $(wildcard .venv-test/bin/python),.venv-test/bin/python,python3)

.PHONY: install lint check test test-gpu test-llama constraints fuzz-api faults parsers history sweep check-catalog sanitize build bench bench-gpu

install: ; ./install.sh
lint: ; $(PYTHON) -m ruff format . && $(PYTHON) -m ruff check --fix .
check: ; $(PYTHON) tools/check.py && $(PYTHON) -m pytest -q tests/test_architecture.py
test: ; $(PYTHON) -m pytest
test-gpu: ; $(PYTHON) tools/test_gpu.py
constraints: ; PYTHONPATH=. $(PYTHON) tools/test_constraints.py --out benchmarks/results/constraints.jsonl $(ARGS)
test-llama: ; $(PYTHON) tools/test_llama.py
fuzz-api: ; nice -n 10 $(PYTHON) tools/fuzz_api.py --out benchmarks/results/fuzz-api.log $(ARGS)
faults: ; $(PYTHON) tools/fault_sweep.py --out benchmarks/results/store.jsonl $(ARGS)
parsers: ; $(PYTHON) tools/parser_cases.py --out benchmarks/results/parsers.jsonl $(ARGS)
history: ; $(PYTHON) tools/store_history.py --out benchmarks/results/store.jsonl $(ARGS)
sweep: ; nice -n 10 $(PYTHON) tools/store_sweep.py --out benchmarks/results/store.jsonl $(ARGS)
check-catalog: ; $(PYTHON) tools/check_catalog.py $(ARGS)
sanitize: ; $(PYTHON) tools/sanitize.py
build: ; $(PYTHON) -m hatchling build -t wheel
bench: ; for file in $(filter-out benchmarks/report.py benchmarks/random_model.py benchmarks/random_gguf.py benchmarks/random_quantized.py benchmarks/padded_stories.py benchmarks/blob_server.py benchmarks/gpu%,$(wildcard benchmarks/*.py)); do PYTHONPATH=. $(PYTHON) $$file || exit 1; done
bench-gpu: ; $(PYTHON) benchmarks/gpu.py --out benchmarks/results/gpu.jsonl $(ARGS)
