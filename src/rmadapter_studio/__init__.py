"""Serve a page for making a classifier without writing code: `rmadapter app`.

server.py answers requests, requests.py says what each of them does, and visitors.py knows who sends
it. session.py does the work of one visitor, images.py stores their images, project.py the labels of
a folder, labelling.py shows what follows from these, and jobs.py runs commands of the command line.
Of the library, only names in `__all__` of its rooms are used.
"""
