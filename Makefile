# Every command that a developer needs is one word. `make demo` and `make test` set up all that they need by themselves.
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo dev test soak lint format bench picture lock clean

demo: $(READY)            ## a request becomes a deployed study, on made-up data; LOOKIT_BUILDER=docker builds in containers
	@if [ "$$LOOKIT_BUILDER" = docker ]; then engine=$$(scripts/docker.sh) && export $$engine; fi && $(BIN)/lookit-ops demo

dev: $(READY)             ## Dagster's UI and the built studies, on the data of the demonstration
	$(BIN)/lookit-ops dev

test: $(READY)            ## everything that is checked, tests last
	scripts/browser.sh
	$(MAKE) --no-print-directory lint
	scripts/unzip.sh
	@echo "Left out here: tests marked soak. \`make soak\` runs them."
	$(BIN)/pytest -n 3

soak: $(READY)            ## what takes minutes, which `make test` leaves out: gigabytes, hanging services, a busy day; before a release
	scripts/unzip.sh
	SOAK=1 $(BIN)/pytest -m "soak or budgeted"

lint: $(READY)            ## format, lint, types, layers of packages, definitions
	$(BIN)/ruff format --check && $(BIN)/ruff check && $(BIN)/ty check && $(BIN)/lint-imports

format: $(READY)          ## put the code into shape
	$(BIN)/ruff format && $(BIN)/ruff check --fix

bench: $(READY)           ## measure beside the peers; ONLY=name for one, QUICK=1 for a small version
	$(BIN)/python -m benchmarks

picture: $(READY)         ## draw the packages and their imports, from the code, into docs/images/packages.svg
	$(BIN)/python scripts/draw_packages.py

lock: $(READY)            ## resolve the newest versions into the lock files
	scripts/lock.sh

clean:                    ## remove the environment and all local data
	rm -rf .venv .lookit .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(READY): requirements-dev.lock pyproject.toml scripts/environment.sh
	scripts/environment.sh
