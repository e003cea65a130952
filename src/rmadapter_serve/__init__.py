"""Serve fitted models over HTTP, each from one thread that batches images of many requests.

server.py runs the process and reloads models, workers.py runs several processes, routes.py answers
paths, requests.py admits requests and reads their images, waiting.py says how long they take,
service.py queues and batches images, and model.py opens runs and exports.
"""
