"""A run on the Hugging Face hub."""
