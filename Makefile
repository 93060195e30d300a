# The two commands a newcomer needs are `make demo` and `make test`. Both make .venv on first use and
# leave it alone afterwards, until the requirements change.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed

.PHONY: system-deps boot-deps demo clients test test-all mutate fuzz lint bench man hashes sbom dist
.DEFAULT_GOAL := demo

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# Debian's software TPM and its tools, for the live tests of TPM quotes, nginx, for those of a proxy in between,
# Chromium, for those of the proxy's page, libvirt's schemas, for its domains, what builds images of machines, and
# PostgreSQL, for ledgers that servers share; without them those tests skip. Needs root, as the next one does.
system-deps:
	apt-get update -qq
	apt-get install --yes --no-install-recommends swtpm tpm2-tools nginx-light chromium libvirt-clients libxml2-utils \
		cryptsetup-bin squashfs-tools postgresql

# What boots images of machines, in slow tests alone.
boot-deps:
	apt-get install --yes --no-install-recommends qemu-system-x86

demo: $(READY)
	$(BIN)/confide demo
	$(BIN)/confide demo enclave
	@if [ -t 1 ]; then $(BIN)/confide demo page; else echo 'A page to chat on, in the browser: $(BIN)/confide demo page'; fi

# Two workers for each core, for half of the time they wait for programs that they start; a file's tests stay
# together, because they share what is slow to make, and files come in the order of tests/conftest.py. Native tracebacks,
# for pytest's own parse the source, which Python 3.11 may not survive beside other threads, and the whole run ends.
# The tests start hundreds of programs: each would compile the package anew where the environment says that no byte code
# is written.
WORKERS := $(shell echo $$((2 * $$(nproc))))
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
	--tb=native -m 'not slow'

test: $(READY)
	$(PYTEST)

# Programs of others that speak OpenAI's API, for the slow tests of the proxy, apart from what Confide itself uses.
CLIENTS := tests/proxy/clients/requirements.txt
OPENAI_FOR_NODE := openai@7.59.0
clients: .venv-clients/.installed
.venv-clients/.installed: $(CLIENTS)
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install --disable-pip-version-check --requirement $(CLIENTS)
	if command -v npm; then npm install --no-audit --no-fund --no-save --prefix .venv-clients $(OPENAI_FOR_NODE); fi
	touch $@

# One after the other: some of the slow ones measure times.
test-all: $(READY) clients
	$(BIN)/python -m pytest --cov=confide --cov-report=term:skip-covered
	$(BIN)/python tools/mutate.py

# Breaks lines that matter, one at a time in a copy, and sees that a test notices: tools/mutations.toml.
mutate: $(READY)
	$(BIN)/python tools/mutate.py

fuzz: $(READY)
	$(BIN)/python -m fuzz --seconds 60

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A manual page for each command, in build/man.
man: $(READY)
	PYTHONPATH=. $(BIN)/python tools/man_pages.py build/man

# The SHA-256 of every wheel that is pinned, after a change of constraints.txt. Of the wheels that everybody gets, and not
# of those that this machine has in a folder.
hashes: $(READY)
	mkdir -p build
	env -u PIP_FIND_LINKS PIP_CONFIG_FILE=/dev/null $(BIN)/python -m pip install --quiet --dry-run --ignore-installed \
		--no-deps --only-binary :all: --report build/wheels.json --requirement constraints.txt
	PYTHONPATH=. $(BIN)/python tools/wheel_hashes.py build/wheels.json

# What a release consists of: docs/release.md.
sbom: $(READY)
	PYTHONPATH=. $(BIN)/python tools/sbom.py dist/confide.cdx.json

dist: $(READY)
	PYTHONPATH=. $(BIN)/python tools/build_release.py dist

bench: $(READY)
	$(BIN)/python -m benchmarks
