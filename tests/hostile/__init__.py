"""Thousands of hostile inputs: each must be accepted or refused in one line, fast and in little
memory.

Each module is one kind: `cases(seed, count)` yields names and contents, the same for the same seed,
and `ask(name, content, folder)` passes one to the library. `harness` judges the outcome.
"""
