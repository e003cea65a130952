"""`rmadapter app`: a page for making a classifier without writing code.

site.py speaks HTTP, session.py does what one visitor asks for, and jobs.py runs commands of the
command line.
"""
