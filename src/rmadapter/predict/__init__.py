"""Answers for any number of images, in constant memory.

cli      the verb
stream   images -> answers, decoded while the model works
outfile  answers as CSV, JSON lines or parquet; an unfinished file can be resumed
sorting  images into one folder per label
"""
