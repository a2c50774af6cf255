PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: experiments install test test-frameworks lint types pytest demo proto test-deploy bench-schedule bench-plan bench-predict chaos soak bench-runtime bench-overlap clean

install: $(VENV)/.installed

# Stamps make a second `make` free; they are renewed when the dependencies change.
# rapidocr comes as files alone, the weights for tests and demo: its code would need OpenCV.
$(VENV)/.runnable: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("onnx-offload needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --editable . 'pillow>=10.1'
	$(BIN)/pip install --quiet --no-deps 'rapidocr>=3.10,<4'
	touch $@

$(VENV)/.installed: $(VENV)/.runnable
	$(BIN)/pip install --quiet --editable . --group dev
	touch $@

test: lint types pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.12

pytest: install
	OPENBLAS_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile -m 'not slow and not door and not gpu'

# The front-door tests that take longer than 3 s each.
.PHONY: test-door
test-door: install
	OPENBLAS_NUM_THREADS=1 $(BIN)/pytest -q -n 2 -m door tests/front_door

# 300 clients that never close their session, 50 at once: each process must end (5 min).
.PHONY: test-exit
test-exit: install
	$(BIN)/python -m tests.benchmarks.bench_exit

# On a machine with a GPU: providers, outputs, profiles, one split inference (6 min at most). Without
# one, all but the hardware is checked. WHEELS=FOLDER installs from there, without an index.
.PHONY: test-gpu
test-gpu:
	test -d build/gpu || $(PYTHON) -m venv build/gpu
	build/gpu/bin/python tests/gpu/install.py $(WHEELS)
	build/gpu/bin/python -m pytest -q -s -m gpu tests/gpu

# Real weights, a real input, every scheme predicted and measured; writes out/demo/index.html.
# Installs what the demo needs, not the tools for development.
demo: $(VENV)/.runnable
	$(BIN)/offload demo

# The documentation as a site in site/, with the references of CLI and Python API made from the
# sources; a broken link or reference is an error. Its tools are installed beside, not among ours.
.PHONY: docs
docs: $(VENV)/.runnable build/docs/.installed
	$(BIN)/python -m typer offload_cli.main utils docs --name offload --title 'Commands' --output docs/cli.md
	NO_MKDOCS_2_WARNING=1 build/docs/bin/mkdocs build --strict

build/docs/.installed: pyproject.toml
	$(PYTHON) -m venv build/docs
	build/docs/bin/pip install --quiet --upgrade 'pip>=25.1'
	build/docs/bin/pip install --quiet --group docs
	touch $@

# Every example, and every block of README and Quickstart that needs no second machine, as a new user
# runs them: in a fresh checkout with a fresh environment (3 min). The site is built where its tools
# can be installed.
.PHONY: test-docs
test-docs: install
	$(MAKE) build/docs/.installed || echo "the site is not built: its tools cannot be installed here"
	test ! -e build/docs/.installed || $(MAKE) docs
	$(BIN)/pytest -q tests/examples tests/docs

# The wire's messages as Python classes; a test tells when this was forgotten.
# KServe's messages get a descriptor pool of their own: a program may also use tritonclient, which
# registers other files with the same names.
PROTOCOL := runtimes/offload_runtimes/protocol
proto: install
	$(BIN)/python -m grpc_tools.protoc -I $(PROTOCOL) --python_out=$(PROTOCOL) --pyi_out=$(PROTOCOL) $(PROTOCOL)/offload.proto $(PROTOCOL)/kserve.proto
	sed -i 's/_descriptor_pool.Default()/_descriptor_pool.DescriptorPool()/' $(PROTOCOL)/kserve_pb2.py

.PHONY: bench-split bench-split-big

# Splitting against the tools people use today, which are installed beside, not among ours.
bench-split: install
	test -d build/peers || $(PYTHON) -m venv build/peers
	build/peers/bin/pip install --quiet --editable . sne4onnx polygraphy onnxsim hypothesis
	PYTHONPATH=. build/peers/bin/python tests/benchmarks/bench_split.py

# Opt-in: 3 GB of weights in a sparse file; needs 10 GB of disk.
bench-split-big: install
	PYTHONPATH=. $(BIN)/python tests/benchmarks/bench_split_big.py

# Opt-in: exports models anew with PyTorch, Keras, JAX, PaddlePaddle and scikit-learn (5 GB).
test-frameworks: install
	$(BIN)/python tests/frameworks/remake.py build/frameworks

# Opt-in: current networks through every command, against plain onnxruntime. Eight by default; FULL=1:
# all, going on where it was stopped, then docs/models.md is written. NETWORKS="yolo11n bert": these.
# KEEP=1 keeps right results of an earlier source, too. PyTorch and the other exporters are installed
# beside, in build/models-venv (3 GB); exports are kept in build/networks.
.PHONY: test-models
test-models: install
	$(BIN)/python -m tests.networks $(if $(filter-out 0,$(FULL)),--full) $(if $(KEEP),--keep-right) $(NETWORKS)

# What these need of Debian is installed where that is allowed; else tests skip and say why.
APT := $(if $(filter 0,$(shell id -u)),apt-get update -qq; apt-get install -qq --no-install-recommends,@echo not root, not installed:)

test-deploy: install
	-$(APT) openssh-server openssh-client systemd dbus tcsh fish
	$(BIN)/pytest -q -s -m slow tests/runtimes/deploy --ignore=tests/runtimes/deploy/test_arm64.py
	$(BIN)/pytest -q tests/front_door/test_ssh_files.py

# `offload up` over real SSH: bare accounts, wrong machines, interruptions at every step, a shaped
# link (as root), an emulated 64-bit Raspberry Pi (7 min).
.PHONY: test-up
test-up: install
	-$(APT) openssh-server openssh-client mmdebstrap qemu-user-static
	$(BIN)/pytest -q -s -m slow tests/up

# As root: three models on two shaped links, a device 10 times slower, through `offload up`.
.PHONY: bench-up
bench-up: install
	-$(APT) openssh-server openssh-client
	$(BIN)/python -m tests.benchmarks.bench_up

# The report of the experiments and the picture of a cut in a headless browser.
.PHONY: test-report
test-report: install
	-$(APT) chromium
	$(BIN)/pytest -q tests/cli/bench/test_report.py tests/front_door/test_cut_pages.py

# The whole gate with Python 3.13, in the Debian that today's Raspberry Pi OS is made from.
.PHONY: test-313
test-313:
	-$(APT) mmdebstrap
	.ci/trixie

# A 64-bit Raspberry Pi's Python and wheels under qemu.
test-arm64: install
	-$(APT) mmdebstrap qemu-user-static openssh-server openssh-client
	$(BIN)/pytest -q -s tests/runtimes/deploy/test_arm64.py

# An environment beside ours; without one, the tests that need it are skipped with the reason.
environment = test -d $(1) || { $(PYTHON) -m venv $(1) && $(1)/bin/pip install --quiet $(2); } || rm -rf $(1)

# Other people's clients and servers; what they need is installed beside, not among ours.
TRITONCLIENT = tritonclient==2.73.0 'grpcio>=1.70' 'protobuf>=7.35.1' numpy packaging
TRITON = nvidia-pytriton==0.7.0 'numpy<2' onnxruntime
.PHONY: test-interop
test-interop: install
	-$(APT) nodejs npm
	-npm install --prefix examples/node --no-audit --no-fund --ignore-scripts --loglevel=error
	$(call environment,build/tritonclient,$(TRITONCLIENT))
	$(call environment,build/triton,$(TRITON))
	$(call environment,build/mlserver,mlserver==1.7.1 onnxruntime)
	$(call environment,build/kserve,kserve==0.21.0 onnxruntime)
	$(BIN)/pytest -q -s tests/interop

# The files of docs/scale: two replicas behind Debian's nginx and haproxy (2 min).
.PHONY: test-balancers
test-balancers: install
	-$(APT) nginx haproxy
	$(BIN)/pytest -q -s -m slow tests/balancers

# A network and process numbers of its own: no port is taken, and all processes end with it.
alone = unshare $(if $(filter-out 0,$(shell id -u)),--map-root-user) --net --pid --fork --kill-child --mount-proc sh -c 'ip link set lo up && exec "$$0" "$$@"'
if_alone = if $(alone) true; then $(alone) $(1); else echo "not run: no network namespace can be made here"; fi
ray = $(call environment,build/ray,--editable '.[ray]')

# Ray Serve on this machine: two replicas, killed and replaced while devices run (4 min).
.PHONY: test-ray
test-ray: install
	$(ray)
	$(call if_alone,$(BIN)/pytest -q -s -m slow tests/ray)

# Ray Serve beside our own server: latency, sessions a second, two replicas for one (4 min).
.PHONY: bench-ray
bench-ray: install
	$(ray)
	$(call if_alone,$(BIN)/python -m tests.benchmarks.bench_ray)

# perf_analyzer against our server and Triton, and our session beside tritonclient (5 min).
.PHONY: bench-interop
bench-interop: install
	-$(APT) libb64-0d
	$(call environment,build/tritonclient,$(TRITONCLIENT))
	$(call environment,build/triton,$(TRITON))
	$(call environment,build/perf,tritonclient==2.41.0 nvidia-cuda-runtime-cu12 'numpy<2')
	$(BIN)/python -m tests.benchmarks.bench_interop

bench-schedule bench-plan bench-predict: install
	$(BIN)/python -m tests.benchmarks.$(subst -,_,$@)

# 200 kills, stops, cuts, stalls and corruptions at random instants (5 min); SHARED=1: while a
# stream runs whose frames several plans share.
chaos: install
	$(BIN)/python -m tests.benchmarks.bench_chaos $(if $(SHARED),--shared)

# 20,000 inferences over 8 sessions with faults: nothing wrong, memory flat (5 min); SHARED=1: in
# streams whose frames several plans share.
soak: install
	MALLOC_ARENA_MAX=2 $(BIN)/python -m tests.benchmarks.bench_soak $(if $(SHARED),--shared)

# The runtime's own cost, as ratios to bare gRPC and bare onnxruntime (2 min).
bench-runtime: install
	$(BIN)/python -m tests.benchmarks.bench_runtime

# The paper's experiments and more, on a shaped link (as root) or an emulated one: out/experiments.
experiments: install
	$(BIN)/offload bench --check

# Prediction only: where PO's own cut goes through several tensors, over models and wirings (5 min).
.PHONY: bench-own-cut
bench-own-cut: install
	$(BIN)/python -m tests.benchmarks.bench_own_cut

# As root: measured against predicted on a shaped link between two namespaces (3 min).
bench-overlap: install
	$(BIN)/python -m tests.benchmarks.bench_overlap

# Which plan the next frame should follow, by simulation (1 min).
.PHONY: bench-share-rules
bench-share-rules: install
	$(BIN)/python -m tests.benchmarks.bench_share_rules

# As root: streams whose frames several plans share, against each plan alone (6 min; FULL=1: 25).
.PHONY: bench-share
bench-share: install
	$(BIN)/python -m tests.benchmarks.bench_share $(if $(FULL),--full)

# As root: a session that follows link, device and server, against each of its plans alone (10 min).
.PHONY: bench-adapt
bench-adapt: install
	$(BIN)/python -m tests.benchmarks.bench_adapt

# Raw schemes against lossless, fp16, uint8 and all encodings on every model and link (5 min).
.PHONY: bench-encodings
bench-encodings: install
	$(BIN)/python -m tests.benchmarks.bench_encodings

# Coverage-guided, each target for so many seconds; atheris is installed beside, not among ours.
# What was found is kept as files in build/fuzz-found, the corpus for the next time, too.
SECONDS ?= 60
.PHONY: fuzz
fuzz: install
	test -d build/fuzz || $(PYTHON) -m venv build/fuzz
	build/fuzz/bin/pip install --quiet --editable . 'atheris>=3' pillow
	PYTHONPATH=. build/fuzz/bin/python -m tests.fuzz.run --seconds $(SECONDS) $(TARGETS)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist
