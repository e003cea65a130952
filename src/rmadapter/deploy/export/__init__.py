"""A run as a folder that answers without this package."""
