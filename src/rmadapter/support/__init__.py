"""Files, processes and output: knows nothing of images or models."""
