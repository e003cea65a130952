"""One format of labelled images a file."""
