# Every target does its own set-up. `make demo` and `make test` need Python 3.11 and nothing else.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
# One thread a worker: two workers with two threads each would only get in each other's way. Compiled
# files are kept whatever the caller's setting: hundreds of processes that tests start read them.
TEST   := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
# Files in the order of their names: by the number of tests the longest one, of six, would come last.
SHARED := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test check format lint types contracts house fast coverage bench bench-disk disk-30 disk-14b disk-h3 encoder-umt5 whole-video every-point every-video test-comfy test-formats test-any-model test-pieces test-gpu comfy-env clean

demo: $(VENV)/.ready
	$(BIN)/blockswap demo "red ball right"

test: $(VENV)/.ready comfy-env
	$(TEST) $(SHARED) $(ARGS)

# The same with line coverage, which takes half as long again.
coverage: $(VENV)/.ready comfy-env
	$(TEST) $(SHARED) --cov --cov-report=term $(ARGS)

check: format lint types contracts fast

format: $(VENV)/.ready
	$(BIN)/ruff format --check .

lint: $(VENV)/.ready
	$(BIN)/ruff check .

types: $(VENV)/.ready
	$(BIN)/mypy

# The tree of the package, with the line in which each file says what it decides.
house: $(VENV)/.ready
	$(BIN)/python tests/house.py

contracts: $(VENV)/.ready
	$(BIN)/lint-imports

fast: $(VENV)/.ready
	$(TEST) $(SHARED) -q -m "not slow and not root" tests/units tests/selection tests/plan \
		tests/layout_files tests/report tests/store tests/decode tests/lora tests/engine/test_readers.py \
		tests/engine/test_equality_runs.py tests/engine/test_guards.py tests/engine/test_restore.py

bench: $(VENV)/.ready
	$(BIN)/python -m benchmarks.schedule
	$(BIN)/python -m benchmarks.host_overhead

# All thirty blocks of Wan 1.3B, a hundred forwards in 800 MB: three minutes, root and 4 GB of disk.
disk-30: $(VENV)/.ready
	BLOCKSWAP_STEADY_BLOCKS=30 $(TEST) -q -s -m root tests/full_size/test_steady_memory.py

# Runs ended, interrupted and failed at every point that is known (of several ranks by every signal, too),
# and a small model in every store, dtype, selection and prefetch distance; CI takes some of them.
every-point: $(VENV)/.ready
	BLOCKSWAP_EVERY_POINT=1 $(TEST) -n 2 -q tests/generate/test_resume.py tests/engine/test_residency.py \
		tests/engine/test_disk_faults.py tests/engine/test_opening_failures.py \
		tests/engine/test_equality_matrix.py tests/ranks/test_signals.py tests/ranks/test_apart.py

# Whole videos of every kind of model, from folders and from single files in every format, on the CPU and on
# the simulated accelerator; CI runs a pairwise choice.
every-video: $(VENV)/.ready
	BLOCKSWAP_VIDEOS=all BLOCKSWAP_EVERY_POINT=1 $(TEST) -n 2 -q tests/generate tests/turns

# A 14B checkpoint in 4 GB of memory: ten minutes, root and 30 GB of disk in FOLDER, or in a
# temporary folder that is removed.
disk-14b: $(VENV)/.ready
	$(BIN)/python -m benchmarks.disk_14b $(FOLDER)

# MiniMax-H3's geometry (20 of 50 blocks, 27 GB) in 6 GB of memory: ten minutes and more, root and
# 29 GB of disk in FOLDER, or in a temporary folder that is removed.
disk-h3: $(VENV)/.ready
	$(BIN)/python -m benchmarks.disk_h3 $(FOLDER)

# Every format x model x LoRA x caller x store x device (half an hour; what streams alternates), and LoRAs
# changed a hundred times in each store; CI runs a pairwise choice of them.
test-formats: $(VENV)/.ready
	BLOCKSWAP_FORMATS=all $(TEST) -n 2 --dist loadgroup -q tests/formats tests/engine/test_lora_changes.py

# Every transformer class of diffusers x device x list, count, automatic; CI runs a pairwise choice.
test-any-model: $(VENV)/.ready
	BLOCKSWAP_ANY_MODEL=all $(TEST) -n 2 -q tests/any_model tests/any_folder

# Forwards in pieces: every family x size x piece x store x caller; CI runs some of them.
test-pieces: $(VENV)/.ready
	BLOCKSWAP_PIECES=all $(TEST) -n 2 -q tests/pieces tests/benchmarks/test_forecasts.py

# Wan's text encoder (11 GB of random weights) in 2 GB of memory, compared with a reference that is
# computed layer by layer: minutes, root and 12 GB of disk in FOLDER, or in a temporary folder.
encoder-umt5: $(VENV)/.ready
	$(BIN)/python -m benchmarks.encoder_umt5 $(FOLDER)

# One step and the decode of a clip by Wan 2.1 1.3B with UMT5-XXL (14 GB of random weights) in 4 GB
# of memory: minutes, root and 16 GB of disk in FOLDER, or in a temporary folder.
whole-video: $(VENV)/.ready
	$(BIN)/python -m benchmarks.whole_video $(FOLDER)

# Root, cgroup v1, a quiet machine, 45 GB of disk: one to two hours.
bench-disk: $(VENV)/.ready
	$(BIN)/python -m benchmarks.disk_tier

# The same tests of the nodes against any ComfyUI that is at hand, such as the newest:
# make test-comfy COMFYUI=<folder with main.py> [COMFYUI_PYTHON=<python with its packages and pytest>]
#                 [WRAPPER=<folder of the WanVideoWrapper pack>] [GGUF=<folder of ComfyUI-GGUF>]
test-comfy: $(VENV)/.ready
	test -n "$(COMFYUI)" || { echo "say which: make test-comfy COMFYUI=<folder with main.py>"; exit 2; }
	BLOCKSWAP_COMFYUI="$(abspath $(COMFYUI))" BLOCKSWAP_COMFYUI_PYTHON="$(COMFYUI_PYTHON)" \
		$(if $(WRAPPER),BLOCKSWAP_WRAPPER="$(abspath $(WRAPPER))") \
		$(if $(GGUF),BLOCKSWAP_GGUF="$(abspath $(GGUF))") \
		$(TEST) -q -rs tests/comfy $(ARGS)

test-gpu: $(VENV)/.ready
	$(BIN)/python -m pytest tests/gpu -m gpu

# A real ComfyUI for the tests, in an environment of its own; does nothing when it is there already.
comfy-env: $(VENV)/.ready
	cd tests && ../$(BIN)/python -m comfy_host.environment

clean:
	rm -rf $(VENV) out .pytest_cache .mypy_cache .ruff_cache tests/simaccel/.build tests/comfy_host/.build

# torch first and alone: the version is pinned, and on machines with a mirror of CPU wheels pip
# takes that one.
$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0 numpy
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
