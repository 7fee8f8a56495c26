# The commands of the project; `make` lists them.
#   PYTHON=python3.12        the interpreter that .venv is made with
#   CONFIG=... ARGS="a.b=c"  another run, and overrides of it, for `make align`; REWARD=..., SWEEP=..., EVALUATE=..., CLAIMS=... for the other jobs
#   RAY_ADDRESS or RAY_API_SERVER_ADDRESS=http://head:8265, STORAGE=/mnt/shared
#                            send the job to that cluster, which writes to that directory

PYTHON ?= python3
CONFIG ?= configs/align/scenes.yaml
REWARD ?= configs/reward/scenes.yaml
SWEEP ?= configs/sweep/scenes.yaml
CLAIMS ?= configs/claims/scenes.yaml
ARENA ?= configs/arena/scenes.yaml
EVALUATE ?= configs/evaluate/scenes.yaml
STORAGE ?= $(CURDIR)/outputs
TESTS_AT_ONCE ?= 3
ARGS ?=

BIN := .venv/bin
STAMP := .venv/installed
export ARGS

# Arguments go through the environment, so that the shell does not tear them.
define submit
	@$(BIN)/python jobs/$(1).py "$(2)" --submit "storage=$(STORAGE)" --args "$$ARGS"
endef

export RAY_USAGE_STATS_ENABLED := 0
export RAY_LOGGER_LEVEL := error
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup align reward sweep evaluate arena claims world mlflow stop test coverage test-slow soak test-gpu test-ui infra-services check format bench bench-rewards bench-gpu profile parity clean

help: ## list the commands
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-22s%s\n", $$1, $$2}'

setup: $(STAMP) ## create .venv with the versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

align: $(STAMP) ## align the demo's one-step generator, as a job of a Ray cluster; starts a local one if none is named
	$(call submit,align,$(CONFIG))

reward: $(STAMP) ## fit a reward to votes; the demo's tiny PickScore to 1,000 simulated ones, in the same way
	$(call submit,reward,$(REWARD))

sweep: $(STAMP) ## vary the run's configuration and find what is best held out, in the same way
	$(call submit,sweep,$(SWEEP))

evaluate: $(STAMP) ## judge models side by side on sets of prompts, in the same way
	$(call submit,evaluate,$(EVALUATE))

arena: $(STAMP) ## open a page in which to draw, compare and vote, on the demo's generators; `make stop` closes it
	$(call submit,arena,$(ARENA))

claims: STUDIES = $(basename $(notdir $(CLAIMS)))
claims: $(STAMP) ## put the paper's claims to the test, in hours; finished runs are kept, and docs/claims.md is rewritten
	$(call submit,claims,$(CLAIMS))
	@mkdir -p docs/claims && cp $(STORAGE)/claims/$(STUDIES)/claims.md docs/$(patsubst scenes%,claims%,$(STUDIES)).md && \
	  cp $(STORAGE)/claims/$(STUDIES)/claims/*.png docs/claims/

world: $(STAMP) ## train what is missing of the embedded world; some two hours on two cores
	OMP_NUM_THREADS=1 $(BIN)/python jobs/build_world.py configs/world/scenes.yaml

mlflow: $(STAMP) ## open the MLflow UI on the runs under outputs/
	$(BIN)/mlflow ui --host 127.0.0.1 --backend-store-uri sqlite:///$(STORAGE)/mlflow.db

stop: $(STAMP) ## stop the local Ray cluster that `make align` started
	@$(BIN)/python jobs/head.py stop

test: $(STAMP) ## run the everyday tests, three files at a time; no GPU needed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu and not slow and not ui" -n $(TESTS_AT_ONCE) --dist loadfile \
	  --no-loadscope-reorder --timeout 600

coverage: $(STAMP) ## measure what the tests without a cluster reach of the algorithm and the rewards
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu and not slow and not ui and not ray" tests/objectives tests/step \
	  tests/reward_services --cov=slingstone.objectives --cov=slingstone.step --cov=reward_services --cov-report=term --cov-fail-under=90

test-ui: $(STAMP) ## drive the MLflow UI over a finished sweep with chromium, and save docs/mlflow-compare.png
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[ui]"
	STORAGE=$(STORAGE) SWEEP=$(SWEEP) $(BIN)/python -m pytest -m ui tests/ui

test-gpu: $(STAMP) ## run the tests that need a GPU; SLINGSTONE_GPU_REHEARSAL=1 tries them at tiny size on a CPU
	$(BIN)/python -m pytest -m gpu tests/gpu

test-slow: $(STAMP) ## run the tests that take minutes each: faults, upstream packages, several nodes
	$(BIN)/python -m pytest -m "slow and not gpu"

soak: $(STAMP) ## train 2,000 steps under random faults, and compare bit for bit with the same undisturbed; an hour
	@OMP_NUM_THREADS=1 $(BIN)/python jobs/soak.py configs/soak/scenes.yaml "storage=$(STORAGE)/soak" --args "$$ARGS"

check: $(STAMP) ## format, lint, types, and that dependencies point down
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

format: $(STAMP) ## format the sources and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## measure the platform's cost against a plain training loop, and the reward services'
	@$(BIN)/python jobs/bench.py "$(CONFIG)" "storage=$(STORAGE)" --args "$$ARGS"
	@OMP_NUM_THREADS=1 $(BIN)/python jobs/bench_rewards.py

bench-rewards: $(STAMP) ## measure what asking a reward service costs beside computing in process
	@OMP_NUM_THREADS=1 $(BIN)/python jobs/bench_rewards.py $(ARGS)

bench-gpu: $(STAMP) ## on a GPU: measure steps at SD1.5's and SDXL's size into docs/benchmarks.md
	@$(BIN)/python jobs/bench_gpu.py --write docs/benchmarks.md $(ARGS)

profile: $(STAMP) ## write a torch.profiler trace of three steps of a run under outputs/profile/
	@$(BIN)/python jobs/trace_steps.py "$(CONFIG)" "storage=$(STORAGE)" --args "$$ARGS"

parity: $(STAMP) ## demand that the rewards equal the upstream packages, which it installs under outputs/parity/
	@PYTHONPATH=. HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python jobs/parity.py $(STORAGE)/parity $(ARGS)

infra-services: ## install Debian's Postgres, which a slow test starts; as root
	apt-get update --quiet --quiet && apt-get install --yes --no-install-recommends postgresql

clean: ## delete outputs and caches; .venv stays
	rm -rf outputs .pytest_cache .ruff_cache .coverage .import_linter_cache dist build
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
