"""`rmadapter app`: a page on which somebody who writes no code makes a classifier.

site.py speaks HTTP, session.py is what one visitor does, and jobs.py runs the very commands that the command line has.
"""
