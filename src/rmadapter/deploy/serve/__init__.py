"""Serve fitted models over HTTP, each from one thread that batches images of many requests.

cli        the command
listen     socket, signals, and a shutdown that loses no answers
door       checks keys, limits request bodies, counts requests
routes     paths and answers
status     a page that shows what is served, with a form to try it
body       images of a request
service    models by name: decodes images in threads, has them answered
batcher    the thread of one model
served     a run or an export as that thread calls it
cached     a run exported once for another engine
wish       what to open
watch      reloads a run that changes
counters   what /metrics shows
limits     of batches, queues and requests
"""
