"""Answers about any number of images, in constant memory.

cli      the verb
stream   images -> answers, decoded while the model is at work
outfile  answers as CSV, JSON lines or parquet; an unfinished file goes on
sorting  images into a folder a label
"""
