"""Which images of a pool without labels to label next, or first."""
