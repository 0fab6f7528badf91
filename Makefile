# `make demo`: see it work on toy models. `make test`: lint and all tests. `make lint`: ruff and mypy. `make clean`.
# All but the last make their own environment in .venv, with what the ComfyUI on this machine asks for, if there is one.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
HOST := $(shell $(PYTHON) harness/find_host.py)
LISTS := requirements.txt tests/requirements.txt $(if $(HOST),$(HOST)/requirements.txt)
# The stamp is named after what is installed, so that a changed list, or another ComfyUI, installs again.
READY := .venv/ready-$(shell cat tests/constraints.txt $(LISTS) | cksum | cut -d ' ' -f 1)

# glibc gives large blocks back at once and takes them anew for each tensor: half of a toy update was page faults.
export MALLOC_MMAP_THRESHOLD_ = 2000000000
export MALLOC_TRIM_THRESHOLD_ = 4000000000
export MALLOC_TOP_PAD_ = 200000000

# Each of the many processes would compile ComfyUI's modules anew where this is set, as it is in containers.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test test-newest lint clean

# Two files of tests at a time, each on one thread: toy models gain nothing from a second.
test: lint
	OMP_NUM_THREADS=1 .venv/bin/pytest tests -n 2 --dist loadfile --no-loadscope-reorder

# What is on the host once more, with the newest of the three packages of ComfyUI's that people update beside it.
NEWEST := comfyui-frontend-package comfy-kitchen comfy-aimdo
test-newest: $(READY)
	rm -rf .newest
	.venv/bin/python -m pip install --no-input --quiet --no-deps --target .newest $(NEWEST)
	PYTHONPATH="$(CURDIR)/.newest" OMP_NUM_THREADS=1 .venv/bin/pytest tests/host -n 2 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy srpo_core

demo: $(READY)
	.venv/bin/python demo

$(READY):
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --no-input --quiet -c tests/constraints.txt $(foreach list,$(LISTS),-r "$(list)")
	touch $@

clean:
	rm -rf .venv .newest .pytest_cache .ruff_cache .hypothesis demo_out build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
