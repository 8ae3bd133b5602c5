# Each target does its own set-up. `make install` makes .venv/ and puts the command there.
PYTHON ?= python3
VENV := .venv
EXTRAS ?= cpu,test
# Other extras are another installation in the same place.
comma := ,
INSTALLED := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))

.PHONY: install demo test bench chaos clean

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade pip
	$(VENV)/bin/pip install --quiet -e '.[$(EXTRAS)]'
	touch $@

install: $(INSTALLED)

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

# kill -9 two hundred times (about twenty minutes); then power cuts, which need root and loop devices.
chaos: install
	$(VENV)/bin/python -m benchmarks.chaos
	$(VENV)/bin/python -m benchmarks.chaos.power

clean:
	rm -rf $(VENV) build dist *.egg-info demo-output
