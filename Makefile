# make demo: train the tokenizer and the model of the demo, evaluate it on the test split, report.
# make demo-full: the same with eight streams and three tokenizers, in about three times the time.
# make test: the fast tests.
# All set up .venv on first use. PYTHON=python3.12 and INSTALLER=uv are yours to choose.

PYTHON ?= python3
INSTALLER ?= pip
CONFIG ?= configs/quickstart.py
SPLIT ?= test
TENTH ?= 0
ifneq ($(filter %quickstart.py:full,$(CONFIG)),)
WORKDIR ?= runs/demo_full
TOKENIZERS := $(addprefix runs/demo_full_tokenizers/,image audio mask)
else
WORKDIR ?= runs/demo
TOKENIZERS := runs/demo_tokenizers/image
endif

VENV := .venv
BIN := $(VENV)/bin
PINS := pyproject.toml constraints.txt
# Pins are made for these extras; beam is left out because it holds protobuf of everyone back.
PINNED := test hf peers media obs cloud kernels docs dev tpu cuda

# `$(call install,FOLDER)` installs into the environment in a folder.
ifeq ($(INSTALLER),uv)
install = $(1)/bin/python -m pip install -q uv && \
	$(1)/bin/uv pip install -q --python $(1)/bin/python -c constraints.txt
else
install = $(1)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt
endif

# The compilers of TPU and GPU are large and no part of a CPU machine's environment: each has its
# own. Of CUDA this is what compiles, without the libraries that run.
COMPILER_tpu := libtpu
COMPILER_cuda := jax-cuda13-plugin jax-cuda13-pjrt nvidia-cuda-nvcc nvidia-nvvm nvidia-cudnn-cu13
compiled = @if $(MAKE) -s .venv-$(1)/.compiler 2> /dev/null; then $(MAKE) -s setup-$(1) && \
	$(TEST_ENV) .venv-$(1)/bin/python -m pytest -m "$(2)" tests/compile $(ARGS); else \
	echo "skipped: $(COMPILER_$(1)) cannot be installed here; make setup-$(1) says why" >&2; fi
ELSEWHERE := not hf and not compile and not cuda and not beam

# Where jax runs on CPU, these keep glibc from mapping the arena of XLA anew at each step (a
# third of its time); `mmjax` sets them for itself. The compile cache makes second runs quick.
TEST_ENV := MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1099511627776 \
	MALLOC_TOP_PAD_=268435456
PYTEST = $(TEST_ENV) $(BIN)/python -m pytest -n 2
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

.PHONY: demo demo-full tokenizers test test-ci test-slow-tenth test-nightly test-hf test-compile \
	test-cuda test-beam bench docs notebooks lint setup setup-tpu setup-cuda setup-beam constraints clean
# An environment stays where one of its steps failed.
.PRECIOUS: .venv-%/.compiler .venv-%/.installed

# Two tokenizers train at once, as each keeps little more than one core busy; on CPU, because one
# process would take an accelerator whole. After Ctrl-C what writes their names before their lines
# stays until they have said that they saved.
demo: setup
	@$(MAKE) --no-print-directory -j2 tokenizers
	$(BIN)/mmjax train $(CONFIG) --workdir $(WORKDIR) $(ARGS)
	$(BIN)/mmjax eval $(WORKDIR) --split $(SPLIT)
	$(BIN)/mmjax report $(WORKDIR)

demo-full:
	@$(MAKE) --no-print-directory demo CONFIG=configs/quickstart.py:full

tokenizers: $(TOKENIZERS:%=%/tokenizer/report.json)

runs/%/tokenizer/report.json: | setup
	JAX_PLATFORMS=cpu $(BIN)/mmjax train-tokenizer configs/quickstart_tokenizers.py:$(*F) \
		--workdir runs/$* $(TOKENIZER_ARGS) 2>&1 \
		| (trap '' INT; sed -u 's/^/$(*F): /') && test -f $@

test: setup
	$(PYTEST) -m "not slow and not ci and not nightly and $(ELSEWHERE)" $(ARGS)

test-ci: setup
	$(PYTEST) -m "ci and not slow and not nightly and $(ELSEWHERE)" $(ARGS)

# The slow tests whose names hash to the digit TENTH; none may fall to it (pytest's code 5).
test-slow-tenth: setup
	$(PYTEST) -m "slow and not nightly and $(ELSEWHERE)" --tenth $(TENTH) $(ARGS) || [ $$? -eq 5 ]

test-nightly: setup
	$(PYTEST) -m "$(ELSEWHERE)" --timeout 1800 $(ARGS)
	$(call compiled,tpu,compile and nightly)
	$(MAKE) test-cuda

# The training step compiled for described chips: what it gathers, keeps in memory and calls. Where
# the compiler cannot be installed (no network, no wheel for this platform), a line says so.
test-compile:
	$(call compiled,tpu,compile and not nightly)

test-cuda:
	$(call compiled,cuda,cuda)

test-hf: $(VENV)/.installed-hf $(VENV)/.installed-peers
	$(PYTEST) -m hf $(ARGS)

bench: bench-step bench-data

bench-%: setup
	$(TEST_ENV) $(BIN)/python benchmarks/$*.py $(ARGS)

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict $(ARGS)

# notebooks/*.py are the sources; Colab opens what is made of them.
notebooks: setup
	$(BIN)/jupytext --update --to ipynb notebooks/*.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Beam holds protobuf, pyarrow and python-dateutil back, so its environment keeps no constraints.
test-beam:
	@if $(MAKE) -s setup-beam 2> /dev/null; then \
	$(TEST_ENV) .venv-beam/bin/python -m pytest -m beam tests/tokenizers $(ARGS); else \
	echo "skipped: apache-beam cannot be installed here; make setup-beam says why" >&2; fi

setup: $(VENV)/.installed

setup-beam: .venv-beam/.installed

.venv-beam/.installed: pyproject.toml
	@[ -x .venv-beam/bin/python ] || $(PYTHON) -m venv .venv-beam
	.venv-beam/bin/python -m pip install -q --disable-pip-version-check -e '.[beam]' \
		pytest pytest-timeout
	@touch $@

setup-tpu setup-cuda: setup-%: .venv-%/.installed

.venv-%/.compiler: constraints.txt
	@[ -x .venv-$*/bin/python ] || $(PYTHON) -m venv .venv-$*
	$(call install,.venv-$*) $(COMPILER_$*)
	@touch $@

.venv-%/.installed: .venv-%/.compiler $(PINS)
	$(call install,.venv-$*) -e . pytest pytest-timeout
	@touch $@

$(VENV)/.installed: $(PINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "mmjax needs Python 3.11 or later; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@[ -x $(BIN)/python ] || { echo "Setting up $(VENV) (a minute or two, once) ..."; \
		$(PYTHON) -m venv $(VENV); }
	$(call install,$(VENV)) -e '.[test]'
	@touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	$(call install,$(VENV)) -e '.[test,$*]'
	@touch $@

constraints: $(VENV)/.installed
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip compile --universal --python-version 3.11 --upgrade --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --quiet $(PINNED:%=--extra %) pyproject.toml \
		-o constraints.txt

clean:
	rm -rf $(VENV) .venv-tpu .venv-cuda .venv-beam .cache build dist site *.egg-info
