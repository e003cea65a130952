"""Serve fitted models over HTTP, each from one thread that batches images of many requests.

server.py runs the process and reloads models, workers.py runs several processes, stalled.py closes
connections that wait for their client, routes.py answers paths, requests.py admits requests and
reads their images, limits.py says how much is taken, waiting.py how long it takes, service.py
queues and batches images, and model.py opens runs and exports.
"""
