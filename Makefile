# Every target sets up .venv by itself; nothing is installed outside it.
#
#   make quickstart      teach a small LLaMA to think, on two CPU cores
#   make test            every test that needs no GPU
#   make recipes         the quick-start on all its seeds
#   make test-kernels    the full matrix of the kernel tests, and planted bugs that they must notice
#   make test-triton-3.6 the machine code of the kernels under the oldest Triton
#   make lint            ruff and pyright
#
# PYTHON=python3.12      which Python builds .venv (3.11 or later)
# TORCH_INDEX=URL        where torch comes from besides pip's own index. On Linux without a GPU,
#                        https://download.pytorch.org/whl/cpu spares a download of some gigabytes.
# WORKERS=4              processes that run the tests

PYTHON ?= python3
TORCH_INDEX ?=
WORKERS ?= 2

BIN := .venv/bin
STAMP := .venv/.installed
THREADS := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.DELETE_ON_ERROR:
.PHONY: setup quickstart test recipes test-kernels test-triton-3.6 lint clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "$(PYTHON) is older than 3.11; give another one: make PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
	    -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: setup
	$(BIN)/thinkrl train quickstart

test: setup
	$(THREADS) $(BIN)/python -m pytest -n $(WORKERS) -m 'not slow'

recipes: setup
	$(THREADS) $(BIN)/python -m pytest -n $(WORKERS) tests/test_quickstart.py

test-kernels: setup
	$(THREADS) $(BIN)/python -m pytest -n $(WORKERS) \
	    -k 'attention or masks or logprob or kernel or token_loss'
	$(THREADS) $(BIN)/python tests/kernels/mutations.py

# The least Triton that is supported, and the one of the GPU reference. It only compiles here.
test-triton-3.6: setup
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target .venv/triton-3.6 triton==3.6.0
	PYTHONPATH=.venv/triton-3.6 TRITON_CACHE_DIR=.venv/triton-3.6/cache \
	    $(THREADS) $(BIN)/python -m pytest -n $(WORKERS) tests/test_kernel_compile.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p .venv/root && ln -sfn ../.. .venv/root/thinkrl
	$(BIN)/pyright

clean:
	rm -rf .venv build thinkrl.egg-info .pytest_cache .ruff_cache
