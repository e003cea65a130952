"""Work on the user's images: wrong labels, copies, and what to label next."""
