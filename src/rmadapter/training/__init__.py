"""The training loop, its contract with methods, and frozen activations."""
