# `make help` lists the commands. A fresh machine needs Python 3.11 or 3.12, make and git.
# The first one that runs: pyenv also has commands of versions that are not in use.
PYTHON ?= $(shell for name in python3.11 python3.12; do $$name -c "" 2> /dev/null && echo $$name && exit; done; echo python3.11)
CONFIG ?= config/quick.yaml
CORES ?= 2
# Size of the data sets in the rehearsal, where 1 is full size.
FACTOR ?= 0.005
PROFILE ?=
# Recipes read these from the shell, as "$$CONFIG", since a path may have spaces and quotes.
export CONFIG CORES PROFILE EMBEDDING SOLUTION
# All text files are UTF-8, whatever the locale of the machine.
export PYTHONUTF8 := 1

LOCKS := requirements.lock torch.lock
VENV := .venv
BIN := $(VENV)/bin
# The name depends on what it is made from: a changed lock, or an interrupted installation, makes it anew.
INSTALLED := $(VENV)/installed-$(shell cat $(LOCKS) pyproject.toml | cksum | tr ' ' '-')
# Only an environment of an earlier installation may be removed: nothing else, and nothing behind a link.
OURS := $(if $(shell test -L $(VENV) && ls -A $(VENV)/),,$(wildcard $(VENV)/installed-*))
SNAKEFILES := Snakefile $(wildcard rules/*.smk rules/methods/*.smk)

.PHONY: help install run study download rehearsal score record tables tutorials docs test check-method r lint clean resume status
.PHONY: gpu-check slurm-test slurm-faults

help:
	@echo "make run      run the benchmark and make its report (CONFIG=$(CONFIG) CORES=$(CORES); PROFILE=slurm on a cluster)"
	@echo "make status   show where the run of CONFIG stands"
	@echo "make resume   after a kill of snakemake --profile slurm: cancel what it left in the queue, unlock"
	@echo "make study    compare settings of CLUE on held-out training cells (config/study.yaml)"
	@echo "make download fetch the raw files of CONFIG ahead of a run, for machines without network"
	@echo "make rehearsal  run config/config.yaml, or a CONFIG, on simulated files (FACTOR=$(FACTOR), METHODS=\"clue cca\")"
	@echo "make score    score an embedding: EMBEDDING=embedding.h5ad SOLUTION=solution.h5ad"
	@echo "make record   write the scores of the finished run of CONFIG to docs/results, then make tables"
	@echo "make tables   write the tables and pictures of the documents, from docs/results and config/schemas"
	@echo "make tutorials  run the tutorials of docs/tutorials and write their pages; minutes, after make download"
	@echo "make docs     build the pages of docs/ as a site in build/docs"
	@echo "make test     run the tests"
	@echo "make slurm-test   run the tests on a real Slurm that is set up for them; slurm-faults: the long ones too"
	@echo "make gpu-check  compare CLUE on this machine's GPU with the CPU, and its speed with scglue's"
	@echo "make check-method NAME=my_method  run one method on a tiny task and say what is wrong"
	@echo "make r        make an R with Seurat 5 in .r/ (Debian, as root); with conda: envs/seurat.yaml"
	@echo "make lint     check style and types: ruff, mypy, snakefmt, snakemake --lint"
	@echo "make clean    remove results, logs and Snakemake's records; keep data/ and $(VENV)"
	@echo "make install  make the environment $(VENV); the others do it when needed"

install: $(INSTALLED)

$(INSTALLED): $(LOCKS) pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))" 2> /dev/null || \
		{ echo "error: $(PYTHON): Python 3.11 or 3.12 is needed; name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@[ -n "$(OURS)" ] || [ -z "$$(ls -A $(VENV)/ 2> /dev/null)" ] || \
		{ echo "error: $(VENV) is a link, or not made by make: remove or rename it, then start again"; exit 1; }
	mkdir -p $(VENV) && touch $(VENV)/installed-by-make
	find $(VENV)/ -mindepth 1 ! -name installed-by-make -delete
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --requirement torch.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

run: $(INSTALLED)
	$(BIN)/python scripts/run.py --config "$$CONFIG" $(if $(PROFILE),--profile "$$PROFILE",--cores "$$CORES")

resume: $(INSTALLED)
	$(BIN)/python -P scripts/resume.py

status: $(INSTALLED)
	@$(BIN)/python -P scripts/status.py --config "$$CONFIG"

study: $(INSTALLED)
	$(BIN)/python scripts/run.py --config config/study.yaml --cores "$$CORES"

download: $(INSTALLED)
	$(BIN)/python scripts/run.py --config "$$CONFIG" --cores "$$CORES" --download

# Not the usual default of CONFIG; one on the command line still takes precedence.
rehearsal: CONFIG = config/config.yaml
rehearsal: $(INSTALLED)
	$(BIN)/python -m tools.rehearse --config "$$CONFIG" --factor $(FACTOR) --folder build/rehearsal --cores "$$CORES" \
		$(if $(METHODS),--methods $(METHODS)) $(if $(DATASETS),--datasets $(DATASETS))

score: $(INSTALLED)
	$(BIN)/python scripts/score.py $(if $(EMBEDDING),--embedding "$$EMBEDDING") $(if $(SOLUTION),--solution "$$SOLUTION")

record: $(INSTALLED)
	$(BIN)/python -P docs/make/record.py --config "$$CONFIG"
	$(BIN)/python -P docs/make/tables.py
	$(BIN)/python -P docs/make/pictures.py

tables: $(INSTALLED)
	$(BIN)/python -P docs/make/tables.py
	$(BIN)/python -P docs/make/schemas.py
	$(BIN)/python -P docs/make/pictures.py

tutorials: $(INSTALLED)
	# or the make that a tutorial runs would print the folder of this checkout
	MAKEFLAGS=--no-print-directory OMP_NUM_THREADS=1 $(BIN)/python -P -W ignore docs/make/tutorials.py

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "site: build/docs/index.html"

# Longest files first, in the order of testpaths. By default files with few tests, such as whole runs, come last.
test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses "$$CORES" --dist loadfile --no-loadscope-reorder

gpu-check: $(INSTALLED)
	$(BIN)/python benchmarks/gpu_check.py

slurm-test: $(INSTALLED)
	@reason=$$($(BIN)/python tests/slurm/cluster.py why-not); if [ -n "$$reason" ]; then echo "no Slurm here: $$reason"; \
	else $(BIN)/python -m pytest tests/slurm -m "slurm and not fault"; fi

slurm-faults: $(INSTALLED)
	$(BIN)/python -m pytest tests/slurm --durations=0

envs/%.sif: envs/%.yaml envs/apptainer.def
	apptainer build --force --build-arg env=$* $@ envs/apptainer.def

check-method: $(INSTALLED)
	@[ -n "$(NAME)" ] || { echo "error: name the method: make check-method NAME=my_method"; exit 1; }
	@CHECK_METHOD=$(NAME) PYTHONPATH=. $(BIN)/python tests/unit/test_method_programs.py
	CHECK_METHOD=$(NAME) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit/test_method_programs.py \
		--verbose --no-header --disable-warnings --tb=short

r:
	tools/r-root.sh .r

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check $(SNAKEFILES)
	$(BIN)/snakemake --lint --configfile "$$CONFIG"

# This also works through links, which may lead to scratch. A linked results folder holds other things too, so only
# results that have logs here are removed. A folder that still holds something stays.
LINKED = $(shell test -L results && echo yes)
MADE = $(patsubst logs/%/,results/%,$(wildcard logs/*/)) $(if $(LINKED),,results) logs .snakemake

clean:
	@for folder in $(MADE); do \
		[ ! -d $$folder ] || find -H $$folder -depth ! -path $$folder ! -path results/README.md -delete; \
		[ $$folder = results ] || rmdir $$folder 2> /dev/null || true; done
	@[ -z "$(LINKED)" ] || [ -z "$$(ls results/)" ] || echo "results is a link; no log here names: $$(ls -m results/)"
