# `make` lists what there is. Everything is installed into .venv with the versions of constraints.txt.
# Needed on the machine: python3 >= 3.10 with its venv module and headers, a C++17 compiler, make.
# PYTHON=python3.12 picks another Python, VENV=... another place, FASTRNN_CUDA=ON|OFF whether fastrnn._cuda is built.
PYTHON ?= python3
VENV ?= .venv
ifeq ($(origin CXX),default)
CXX = c++
endif
ARGS ?=
# Optimized CUDA kernels take most of an hour on two cores. Without a GPU they can only be compiled, not run.
export FASTRNN_CUDA_FAST_COMPILE ?= $(if $(shell command -v nvidia-smi),OFF,ON)
# Pythons of the virtual environment and, for `make gpu`, of a machine that may have no network.
PY = $(VENV)/bin/python
GPU_PYTHON ?= $(if $(wildcard $(PY)),$(PY),$(PYTHON))

PIP = $(PY) -m pip --disable-pip-version-check
PIP_INSTALL = $(PIP) install -q -c constraints.txt
BUILD_TOOLS = scikit-build-core pybind11 cmake ninja
SOURCES := $(shell find csrc cuda python -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' -o -name '*.py' \
	-o -name '*.pyi' -o -name py.typed) CMakeLists.txt pyproject.toml constraints.txt
SANITIZE = build/sanitize
CLANG_FILES = $(shell find csrc cuda tests/cuda_host -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help demo test dev bench lint format sanitize wheel gpu clean distclean
.DELETE_ON_ERROR:

help:
	@echo "make demo      train a model on real data, fastrnn and torch side by side"
	@echo "make test      build, install and run all tests         (ARGS='-k lstm -x')"
	@echo "make bench     measure against torch, onnxruntime and openvino  (ARGS=...)"
	@echo "make dev       editable install; run again after editing C++"
	@echo "make lint      ruff and clang-format; 'make format' applies them"
	@echo "make sanitize  the tests under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make wheel     a wheel in dist/"
	@echo "make gpu       on a machine with a GPU: build for it, test, measure against cuDNN"
	@echo "make clean     remove build outputs; 'make distclean' removes $(VENV) as well"

# ---- environment: each file below records a step that was done, newer than what it was done from
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "fastrnn: $(PYTHON) is $$($(PYTHON) --version 2>&1), expected Python >= 3.10 (set PYTHON=...)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' \
		|| { echo "fastrnn: $(PYTHON) has no venv module (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
		|| { echo "fastrnn: $(PYTHON) has no headers (Debian, Ubuntu: apt install python3-dev)"; exit 1; }
	@command -v $(firstword $(CXX)) >/dev/null \
		|| { echo "fastrnn: no C++ compiler '$(CXX)' found (Debian, Ubuntu: apt install g++)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.build-tools: $(VENV)/.created constraints.txt
	$(PIP_INSTALL) $(BUILD_TOOLS)
	@touch $@

# The package with the optional dependencies of one job, for example .ready-test. Compiled objects stay in build/, so
# only what changed is compiled again. An extension module left in the source folder would shadow the installed one.
$(VENV)/.ready-%: $(VENV)/.build-tools $(SOURCES)
	$(PIP_INSTALL) --no-build-isolation $(if $(wildcard $(VENV)/.editable),-e) ".[torch,$*]"
	@touch $@

demo: $(VENV)/.ready-demo
	$(PY) -m fastrnn demo $(ARGS)

# One process for each CPU, as far as that pays; ARGS=-n0 for one alone, as a debugger needs it. Their OpenMP threads
# would take each other's time if they waited by spinning.
test: $(VENV)/.ready-test
	OMP_WAIT_POLICY=PASSIVE $(PY) -m pytest -n auto --maxprocesses 8 --dist worksteal $(ARGS)

bench: $(VENV)/.ready-bench
	$(PY) -m fastrnn bench $(ARGS)

# Python files are used in place; running this again, or any target that needs the package, rebuilds the extension
# modules.
dev: $(VENV)/.build-tools
	rm -f python/fastrnn/_core*.so python/fastrnn/_cuda*.so
	$(PIP_INSTALL) --no-build-isolation -e ".[torch,test,lint]"
	@touch $(VENV)/.editable $(VENV)/.ready-test $(VENV)/.lint-tools

$(VENV)/.lint-tools: $(VENV)/.created constraints.txt
	$(PIP_INSTALL) ruff clang-format
	@touch $@

lint: $(VENV)/.lint-tools
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(CLANG_FILES)

format: $(VENV)/.lint-tools
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CLANG_FILES)

# The sanitizers' run-time libraries have to be in the process before Python is, and libstdc++ with them, or C++
# exceptions crash. PYTHONMALLOC=malloc puts NumPy's small buffers under their eyes. The package is taken from
# $(SANITIZE)/site, over which an editable install would win: that is replaced by a plain one. The benchmark's tests are
# left out: they run the other libraries, some of which do not survive the sanitizers.
SANITIZE_ENV = FASTRNN_SANITIZE=ON PYTHONPATH=$(CURDIR)/$(SANITIZE)/site PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 \
	UBSAN_OPTIONS=print_stacktrace=1 \
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)"

sanitize:
	@if [ -e $(VENV)/.editable ]; then rm -f $(VENV)/.editable $(VENV)/.ready-*; fi
	@$(MAKE) --no-print-directory $(VENV)/.ready-test
	CXX="$(CXX)" $(VENV)/bin/cmake -S . -B $(SANITIZE) -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(VENV)/bin/ninja \
		-DPython_EXECUTABLE=$(CURDIR)/$(PY) -DFASTRNN_SANITIZE=ON -DFASTRNN_CUDA=OFF
	$(VENV)/bin/cmake --build $(SANITIZE)
	$(VENV)/bin/cmake --install $(SANITIZE) --prefix $(SANITIZE)/site
	$(SANITIZE_ENV) $(PY) -c 'import fastrnn._core as c; assert "/$(SANITIZE)/site/" in c.__file__, c.__file__'
	$(SANITIZE_ENV) $(PY) -m pytest --ignore tests/test_bench.py $(ARGS)

wheel: export FASTRNN_CUDA_FAST_COMPILE = OFF
wheel: $(VENV)/.build-tools
	$(PIP) wheel -q --no-deps --no-build-isolation -w dist .
	@ls -l dist

# On a machine with a GPU and no network: builds for that chip with GPU_PYTHON's own packages (torch, pybind11, cmake,
# pytest), then compute-sanitizer where it works, all device tests, and the benchmark, whose table comes last.
GPU_SITE = build/gpu/site
GPU_TESTS = PYTHONPATH=$(CURDIR)/$(GPU_SITE) $(GPU_PYTHON) -m pytest -q -p no:cacheprovider -m gpu \
	tests/test_cuda*.py tests/test_decoder.py tests/test_generation.py
GPU_OUT ?=
gpu:
	cmake -S . -B build/gpu -DFASTRNN_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=native \
		-DPython_EXECUTABLE="$$($(GPU_PYTHON) -c 'import sys; print(sys.executable)')"
	@env -u MAKEFLAGS -u MAKELEVEL cmake --build build/gpu --parallel
	cmake --install build/gpu --prefix $(GPU_SITE) >/dev/null
	PYTHONPATH=$(GPU_SITE) $(GPU_PYTHON) -m fastrnn info
	@for tool in memcheck racecheck synccheck; do \
		if command -v compute-sanitizer >/dev/null; then \
			echo "compute-sanitizer $$tool"; \
			timeout 60 compute-sanitizer --tool $$tool --error-exitcode 9 $(GPU_PYTHON) -c 'import torch; torch.zeros(1).cuda()' \
				>/dev/null 2>&1 || { echo "  does not work here"; continue; }; \
			PYTHONPATH=$(CURDIR)/$(GPU_SITE) timeout 100 compute-sanitizer --tool $$tool --error-exitcode 9 $(GPU_PYTHON) \
				-m pytest -q -p no:cacheprovider -m gpu tests/test_cuda*.py \
				-k 'oracle and not float64 and (((lstm or before) and H33) or 2x33x65x33x5-additive6 or several_blocks)' \
				> build/gpu/$$tool.log 2>&1; status=$$?; tail -3 build/gpu/$$tool.log; echo "  exit status $$status"; \
		fi; done
	$(GPU_TESTS)
	cmake --build build/gpu --target gpu_primitives
	PYTHONPATH=$(GPU_SITE) $(GPU_PYTHON) bench/gpu.py --primitives build/gpu/gpu_primitives $(if $(GPU_OUT),--out $(GPU_OUT)) $(ARGS)

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	rm -f python/fastrnn/_core*.so python/fastrnn/_cuda*.so $(VENV)/.ready-*
	find csrc python tests bench examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean
	rm -rf $(VENV)
