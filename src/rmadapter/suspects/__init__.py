"""Training images to check: wrong labels, copies, odd or broken images; and how to get a data set without them."""
