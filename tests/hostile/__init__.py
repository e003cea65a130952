"""Thousands of hostile inputs: each must be accepted or refused in one line, fast and in little
memory.

Most modules are one kind of inputs: `cases(seed, count)` yields names and contents, the same for
the same seed, and `check(name, content, folder)` passes one to the library. `harness` judges the
outcome. `kills` interrupts runs instead.
"""
