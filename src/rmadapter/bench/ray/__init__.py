"""Runs of a bench on a Ray cluster."""
