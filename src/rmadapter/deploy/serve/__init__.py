"""Fitted models answer over HTTP, each from one thread that is asked about images of many requests together.

cli        the verb
listen     a socket, signals, and an end without lost answers
door       who comes in, how much they may bring, what is counted
routes     paths and answers
status     a page that tells what is served, and a form to try it
body       what a request brings
service    models by name: images are decoded in threads, asked about, answered
batcher    the thread of one model
served     a run or an export as that thread asks it
cached     a run exported once for another engine
wish       what is to be opened
watch      a run that changes is loaded again
counters   what /metrics shows
limits     how much of everything
"""
