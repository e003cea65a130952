"""`rmadapter app`: a page for making a classifier without writing code.

server.py speaks HTTP and knows the visitors, session.py does what one visitor asks for, images.py
keeps their images, and jobs.py runs commands of the command line.
"""
