"""Extend and compare finished runs.

cli      the verbs
grow     a run with more classes or more training images
compare  runs on one test set, image by image
"""
