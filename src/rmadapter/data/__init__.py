"""Labelled images and what the few-shot protocol does with them; independent of models."""
