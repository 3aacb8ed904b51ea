# The two commands: `make demo` and `make test`. Everything else is a part of them or a developer's tool.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help env demo test test-long fuzz sanitize lint format plugins check-tensorrt check-triton check-triton-server cpp check-cpp gpu bench clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

env: $(STAMP) ## make .venv with an editable install

# The native sources are part of the stamp: an editable install rebuilds the library when they change.
$(STAMP): pyproject.toml constraints.txt CMakeLists.txt $(shell find plugins -type f -name '*.[ch]*' -o -name CMakeLists.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: Python 3.11 or newer is needed; found $$($(PYTHON) --version). Use: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cpu,hf,dev]'
	@touch $@

demo: env ## the main job on real weights: convert, upcycle, heal, fold, export, verify, generate
	$(BIN)/python -m demo.run

test: env ## the whole test suite
	$(BIN)/python -m pytest -n 2

test-long: env ## the suite's random tests, many times (50 kills a stage), and a Ray cluster
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[ray]'
	ULTRAMEM_KILL_ROUNDS=25 $(BIN)/python -m pytest -n 2 tests/test_kills.py tests/checkpoint/test_ray_cluster.py

sanitize: env ## the kernels under AddressSanitizer, UBSan and ThreadSanitizer
	$(BIN)/python -m pytest tests/plugins/test_kernels.py

# 18 tests of 6,000 inputs, then the header and index readers guided by coverage, then the C++ ones (with clang++).
fuzz: cpp ## damaged files through every reader: 100,000 and more, ten million through those of C++
	ULTRAMEM_FUZZ_EXAMPLES=6000 $(BIN)/python -m pytest -n 2 tests/fuzz
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz.headers_with_atheris -runs=50000 -max_len=512
	ULTRAMEM_CPP=$(abspath build/cpp) ULTRAMEM_FUZZ_EXECUTIONS=10000000 $(BIN)/python -m pytest tests/cpp/test_runtime.py -k readers -rs

lint: env ## formatting, linting and types, Python and C++
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m mypy
	git ls-files 'plugins/*.h' 'plugins/*.hpp' 'plugins/*.cpp' 'plugins/*.cu' 'plugins/*.cuh' | xargs -r $(BIN)/clang-format --dry-run --Werror
	$(BIN)/python -m ultramem_deploy.ops.render --check

format: env ## rewrite Python and C++ in the project's style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	git ls-files 'plugins/*.h' 'plugins/*.hpp' 'plugins/*.cpp' 'plugins/*.cu' 'plugins/*.cuh' | xargs -r $(BIN)/clang-format -i

plugins: env ## build all native code that the machine's tools allow in build/native, warnings as errors
	$(BIN)/cmake -S . -B build/native -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
		-DPython_EXECUTABLE=$(abspath $(BIN))/python
	$(BIN)/cmake --build build/native

check-tensorrt: plugins ## TensorRT without a GPU: registry, harness, register spills, RTX engines; JSON on the last line
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		tensorrt-lean-cu13-libs tensorrt-lean-cu13-bindings tensorrt-rtx-cu13
	@$(BIN)/python -m tools.check_tensorrt

check-triton: env ## the Triton kernels compiled for sm_80, 90 and 100 without a GPU; JSON on the last line
	$(BIN)/python -m tools.check_triton

cpp: env ## the C++ library and its example programs, in build/cpp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cpp]'
	$(BIN)/cmake -S . -B build/cpp-build -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
		-DULTRAMEM_RUNTIME=ON -DPython3_EXECUTABLE=$(abspath $(BIN))/python \
		-DCMAKE_INSTALL_PREFIX=$(abspath build/cpp) -DCMAKE_INSTALL_LIBDIR=lib
	$(BIN)/cmake --build build/cpp-build
	$(BIN)/cmake --install build/cpp-build --component runtime

# An engine for the C++ runner's tests is built by tensorrt-rtx, which needs no GPU for it; without it they are skipped.
check-cpp: cpp ## the tests of the C++ library: the same tokens everywhere, every error
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		tensorrt-lean-cu13-libs tensorrt-rtx-cu13
	ULTRAMEM_CPP=$(abspath build/cpp) $(BIN)/python -m pytest tests/cpp

check-triton-server: env ## a real Triton Inference Server (PyTriton's, 55 MB) serves what `bundle --triton` writes
	test -x .venv-triton/bin/python || $(BIN)/python -m venv .venv-triton
	.venv-triton/bin/python -m pip install --quiet --disable-pip-version-check 'nvidia-pytriton>=0.7' 'onnxruntime<1.24'
	ULTRAMEM_TRITON_SERVER=.venv-triton $(BIN)/python -m pytest tests/converters/bundle/test_triton.py

# `make cpp gpu` runs the C++ program of tests/gpu too.
gpu: plugins ## every check and benchmark that needs a GPU, into benchmarks/results
	@$(BIN)/python -m tools.gpu

# In this order; one that misses its target does not keep the others from running.
BENCHMARKS := lookup.py retrieval.py decode.py fold.py scale.py mapped.py order.py interleaved.py attention.py linear.py convert_memory.py \
	decode_genai.py "big_convert.py --quick" "big_fold.py --quick" cpp/table.py

bench: cpp ## every benchmark, tables on the terminal, rows and plots in benchmarks/results
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench,plot]'
	@missed=; for benchmark in $(BENCHMARKS); do \
		echo "== benchmarks/$$benchmark"; $(BIN)/python benchmarks/$$benchmark || missed="$$missed $${benchmark%% *}"; done; \
	test -z "$$missed" || { echo "failed, or below the target:$$missed"; exit 1; }

clean: ## remove what the commands above made, downloads excepted
	rm -rf build dist demo/out demo/report.md demo/*.png $(VENV)
