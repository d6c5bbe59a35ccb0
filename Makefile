# A thin front: support/bootstrap.py does the work, and runs without make as well, as in
#   python support/bootstrap.py lab

# Any Python from 3.11. Name one to use it: make lab PYTHON=python3.12
PYTHON ?= python3
# For example: make lab LAB_ARGS="--no-browser --port 9000"
LAB_ARGS ?=
# For example: make test TEST_ARGS="tests/test_theory.py -x"
TEST_ARGS ?=
# For example: make lock LOCK_ARGS=--upgrade
LOCK_ARGS ?=

BOOTSTRAP = @$(PYTHON) support/bootstrap.py

.PHONY: help lab test notebook reset bench lock clean

help:
	@echo "make lab                              open the course in JupyterLab"
	@echo "make test                             run every test"
	@echo "make reset CHAPTER=01_event_loop      start a chapter afresh; your copy is kept"
	@echo "make notebook CHAPTER=01_event_loop   run a chapter and store its outputs"
	@echo "make bench                            measure what the recorder costs"
	@echo "make lock                             solve requirements.lock again"
	@echo "make clean                            delete the environment and the caches, not your work"

lab:
	$(BOOTSTRAP) lab $(LAB_ARGS)

test:
	$(BOOTSTRAP) test $(TEST_ARGS)

notebook:
	$(BOOTSTRAP) notebook $(CHAPTER)

reset:
	$(BOOTSTRAP) reset $(CHAPTER)

bench:
	$(BOOTSTRAP) bench

lock:
	$(BOOTSTRAP) lock $(LOCK_ARGS)

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
	find support tests notebooks -name __pycache__ -prune -exec rm -rf {} +
