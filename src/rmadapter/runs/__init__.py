"""Extend and compare finished runs."""
