"""Hostile inputs by the thousand: each is accepted or refused in a sentence, soon and in little
memory.

Each module is a kind: `cases(seed, count)` yields names and contents, the same for the same seed,
and `ask(name, content, folder)` hands one to the library. `harness` judges what comes of it.
"""
