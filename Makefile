# `make repro` sets up everything and runs the pipeline; `make test` sets up everything and runs the tests.
# `make preset NAME=sdxl-8x910b` writes params.yaml for a model and a machine; `make doctor` says whether a run can start.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(CURDIR)/.venv/bin

# Stages are started as `python -m stages.…` and msrun starts `python`: both must be the environment's.
export PATH := $(BIN):$(PATH)

# What CANN wants of Python is installed where there is an NPU, and with `make repro NPU=1`.
NPU ?= $(wildcard /dev/davinci[0-9]*)

# What s3:// takes is installed where params.yaml names it, and with `make repro S3=1`.
S3 ?= $(shell grep -E '^ *images: *["'"'"']?s3://' params.yaml 2>/dev/null)

# DVC watches a list of URLs and not what is behind them; the servers are asked before each run (docs/far-data.md).
URLS ?= $(shell grep -iE '^ *images: *[^#]*\.urls' params.yaml 2>/dev/null)

# Ray is installed where params.yaml names a cluster, and with `make repro RAY=1`.
RAY ?= $(shell grep -E '^ *cluster: *["'"'"']?(auto|[^ :]+:[0-9]+)' params.yaml 2>/dev/null)

.PHONY: repro test preset doctor report exps docs requirements

repro: .venv/.run $(if $(NPU),.venv/.npu) $(if $(S3),.venv/.s3) $(if $(RAY),.venv/.ray)
	$(if $(URLS),python -m pipeline data refresh)
	dvc repro

# One HTML page of the workspace, or of experiments side by side: make report EXP="a b" AGAINST=presets/tiny.yaml
report: .venv/.run
	python -m pipeline.report $(EXP) $(if $(AGAINST),--against $(AGAINST))

# The experiments in a small table.
exps: .venv/.run
	@python -m pipeline exps

# In four processes, each file of tests in one: most of the time is graphs' compilation, which takes one core, and a sixth
# less with huge pages (where the C library is glibc); and ranks wait for each other.
test: .venv/.test
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m pytest -n 4 --dist loadfile --no-loadscope-reorder tests

preset: .venv/.run
	@python -m pipeline preset $(NAME)

doctor: .venv/.run $(if $(NPU),.venv/.npu) $(if $(S3),.venv/.s3) $(if $(RAY),.venv/.ray)
	@python -m pipeline doctor

# site/ from docs/, in an environment of its own: it needs nothing of the pipeline.
docs: .venv-docs/.docs
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --clean

.venv-docs/.docs: requirements-docs.txt
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	touch $@

.venv/.run: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/.s3: requirements-s3.txt .venv/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-s3.txt
	touch $@

.venv/.ray: requirements-ray.txt .venv/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-ray.txt
	touch $@

.venv/.test: requirements-test.txt tests/report/chromium.py .venv/.run .venv/.s3 .venv/.ray
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	$(BIN)/python -m tests.report.chromium
	touch $@

.venv/.npu: requirements-npu.txt .venv/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-npu.txt
	touch $@

# After an edit of a requirements*.in: pin anew.
requirements:
	rm -rf .venv && $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -r requirements.in
	$(BIN)/python -m pip freeze > requirements.txt
	$(BIN)/python -m pip install -r requirements-npu.in
	$(BIN)/python -m pip freeze | grep -vxFf requirements.txt > requirements-npu.txt
	$(BIN)/python -m pip uninstall --yes -r requirements-npu.txt
	$(BIN)/python -m pip install -r requirements-s3.in
	$(BIN)/python -m pip freeze | grep -vxFf requirements.txt > requirements-s3.txt
	$(BIN)/python -m pip install -r requirements-ray.in
	$(BIN)/python -m pip freeze | grep -vxFf requirements.txt | grep -vxFf requirements-s3.txt > requirements-ray.txt
	$(BIN)/python -m pip install -r requirements-test.in
	$(BIN)/python -m pip freeze | grep -vxFf requirements.txt | grep -vxFf requirements-s3.txt \
		| grep -vxFf requirements-ray.txt > requirements-test.txt
	rm -rf .venv-docs && $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install -r requirements-docs.in
	.venv-docs/bin/python -m pip freeze > requirements-docs.txt
