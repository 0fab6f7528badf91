# `make demo`: see it work on toy models. `make test`: lint and all tests. `make lint`: ruff and mypy. `make clean`.
# `make test-newest`: the tests on the host with the newest packages beside it. All are harness/dev.py's.

PYTHON ?= $(shell command -v python3.11 || command -v python3)

.PHONY: demo test test-newest lint clean

demo test test-newest lint clean:
	@$(if $(PYTHON),"$(PYTHON)" harness/dev.py $@,echo "No Python was found: install 3.10 or newer, or name one, PYTHON=/path/to/python3." >&2; exit 1)
