"""Training images to look at: wrong labels, copies, and images that are odd or broken; and a data set without them.

rules   which labels look wrong, from answers and neighbours
looks   which images look wrong, from their pixels and features
find    from a data set to its suspects
write   suspects as CSV and as a page
apply   what somebody decided, as a cleaned copy
cli     the verb
"""
