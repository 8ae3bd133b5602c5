# Each target does its own set-up. `make install` makes .venv/ and puts the command there.
PYTHON ?= python3
VENV := .venv
EXTRAS ?= cpu,test
# Other extras are another installation in the same place.
comma := ,
INSTALLED := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))

.PHONY: install install-locked lock bundle demo test bench chaos clean

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade pip
	$(VENV)/bin/pip install --quiet -e '.[$(EXTRAS)]'
	touch $@

install: $(INSTALLED)

# What a hospital runs: EXTRAS is cpu or gpu, every package in the version and with the hash that locks/ names.
# A lock is whole, so nothing is resolved (--no-deps); locks/overrides.txt says what is left out of it, and why.
install-locked:
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --require-hashes -r locks/pip.txt
	$(VENV)/bin/pip install --quiet --require-hashes --no-deps -r locks/$(EXTRAS).txt
	$(VENV)/bin/pip install --quiet --no-deps --no-build-isolation -e .

# Newer versions, to be tested before they are committed.
UV_COMPILE := UV_CUSTOM_COMPILE_COMMAND="make lock" build/lock/bin/uv pip compile --quiet --upgrade --python-version 3.11 \
    --generate-hashes --no-emit-index-url --no-emit-find-links
lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet uv
	for extra in cpu gpu; do $(UV_COMPILE) setup.cfg locks/server.in --extra $$extra --override locks/overrides.txt \
	    --output-file locks/$$extra.txt || exit 1; done
	echo pip | $(UV_COMPILE) - --output-file locks/pip.txt

# What is carried to a machine without internet (docs/INSTALL.md): dist/anatomynode-VERSION-EXTRA-*.tar.gz.
bundle:
	packaging/build-bundle.sh --extra $(if $(filter gpu,$(EXTRAS)),gpu,cpu)

test: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/python -m pytest

# make demo CT=DIR contours a CT series of your own; without it the patient is a phantom.
demo: install
	$(VENV)/bin/anatomynode demo $(if $(CT),--ct "$(CT)")

bench: install
	$(VENV)/bin/python -m benchmarks

# kill -9 two hundred times (about twenty minutes); then power cuts, which need root and loop devices;
# then hostile peers (about twenty minutes) and load.
chaos: install
	$(VENV)/bin/python -m benchmarks.chaos
	$(VENV)/bin/python -m benchmarks.chaos.power
	$(VENV)/bin/python -m benchmarks.chaos.hostile --sequences 20000
	$(VENV)/bin/python -m benchmarks.chaos.load

clean:
	rm -rf $(VENV) build dist *.egg-info demo-output
