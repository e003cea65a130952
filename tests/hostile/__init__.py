"""Hostile inputs by the thousand: whatever is handed to us is accepted or refused in a sentence, soon and in little memory.

Each module is a kind: `cases(seed, count)` yields names and contents, the same for the same seed, and `ask(name, content,
folder)` hands one to the library and returns the answer. `harness` judges what comes of it.
"""
