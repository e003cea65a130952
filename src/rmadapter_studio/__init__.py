"""Serve a page for making a classifier without writing code: `rmadapter app`.

server.py answers requests and keeps the list of visitors, session.py does the work of one visitor,
images.py stores their images, labelling.py follows the labels of a project, and jobs.py runs
commands of the command line.
"""
