"""Generated inputs for each parser of ours, as long as one likes (`make fuzz MINUTES=30`).

`strategies` writes inputs with Hypothesis: sound ones by the tests' own writers, damaged by
`tests.hostile.mutate`, and ones with a parser's structure and odd values. `targets` passes them to
the parsers. `tests.hostile.harness` judges the outcome. Nothing measures which code an input
reaches, so this is not guided by coverage.
"""
