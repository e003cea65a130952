"""Serve fitted models over HTTP, each from one thread that batches images of many requests."""
