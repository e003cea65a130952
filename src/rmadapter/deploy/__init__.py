"""Export a fitted model: a folder that answers as `predict` does, without this package."""
