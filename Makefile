# Two commands for a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
TORCH ?= torch==2.13.0  # the tests' reference; the CPU build is enough
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q

.PHONY: demo test test-slow lint bench native clean

demo: $(VENV)/.demo  ## pocket checkpoint -> GGUF -> verify -> llama.cpp -> Harmony answer
	BIN=$(BIN) sh scripts/demo.sh

test: $(VENV)/.test  ## every test but the very slow ones
	BIN=$(BIN) sh scripts/test.sh

test-slow: $(VENV)/.test  ## the very slow ones: long fuzz, whole product, cross-compiled kernels
	$(BIN)/pytest -m slow --timeout 3600

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/mypy -p gptoss_harmony -p gptoss_adapters -p gptoss_converters

bench: $(VENV)/.test  ## every benchmark, side by side with its peers; JSON under bench/results
	for script in harmony mxfp4 convert decode; do $(BIN)/python bench/$$script.py || exit 1; done

native:  ## build the MXFP4 kernels in place, for development from a checkout
	cmake -S . -B build/native -G Ninja -DCMAKE_BUILD_TYPE=Release >/dev/null
	cmake --build build/native -j2
	cp --remove-destination build/native/_mxfp4.so gptoss_adapters/mxfp4/_mxfp4.so  # running programs keep the old one

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(PIP) "scikit-build-core>=0.11" && $(PIP) -e ".[llama-server]"
	touch $@

$(VENV)/.test: pyproject.toml CMakeLists.txt scripts/install_llama_cpp.sh | $(VENV)/bin/python
	$(PIP) $(TORCH)
	$(PIP) -e ".[test]"
	sh scripts/install_llama_cpp.sh $(VENV)
	touch $@

clean:
	rm -rf build demo-out $(VENV)
