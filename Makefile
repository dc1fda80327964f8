# make run        train one learner of each paradigm, in two minutes on two cores once installed
# make test       ruff, mypy and the tests; `make test-slow` runs the tests that take minutes
# make clean      remove what can be made again; runs stay
#
# Options: ARGS='--steps 100' goes to the program or to pytest; EXTRAS=dev,rl installs more;
# PY=python3.12 chooses the interpreter. What .venv was made with holds until told otherwise.

-include .venv/settings.mk
PY ?= python3
EXTRAS ?= dev
ARGS ?=
PYTHON := .venv/bin/python
VERSION := import sys; print('%d.%d' % sys.version_info[:2])

.PHONY: run test test-slow clean FORCE

run: .venv/.done
	$(PYTHON) -m experiments.quickstart $(ARGS)

test: .venv/.done
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest -n 2 $(ARGS)

test-slow: .venv/.done
	$(PYTHON) -m pytest -m slow $(ARGS)

clean:
	rm -rf .venv build *.egg-info .cache .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An interpreter or extras other than the ones that .venv was made with make it stale.
ifneq ($(BUILT_WITH),$(PY) $(EXTRAS))
.venv/.done: FORCE
endif

# An environment that runs with the right version is brought up to date in place; any other is made
# afresh.
.venv/.done: pyproject.toml constraints.txt
	@version=$$($(PY) -c "$(VERSION)" 2>&1) || version="not a working interpreter"; \
	case $$version in 3.11|3.12|3.13) ;; *) \
	  echo "paradigms needs Python 3.11 to 3.13, and $(PY) is $$version: name another," \
	    "for instance make PY=python3.12" >&2; exit 1;; esac; \
	rm -f $@; \
	test "$$($(PYTHON) -m pip --version >/dev/null 2>&1 && $(PYTHON) -c "$(VERSION)")" = $$version \
	  || $(PY) -m venv --clear .venv
	$(PYTHON) -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt -e '.[$(EXTRAS)]'
	@printf 'PY ?= %s\nEXTRAS ?= %s\nBUILT_WITH := %s\n' \
	  '$(PY)' '$(EXTRAS)' '$(PY) $(EXTRAS)' > .venv/settings.mk
	@touch $@
