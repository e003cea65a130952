"""Which images of a pool without labels to label next, or first.

acquire  rules: from features and probabilities to rows of the pool
propose  run and pool -> suggestions
shown    suggestions as a list and as a page
cli      the verb
"""
