"""Training images to look at: wrong labels, copies, and images that are odd or broken; and a data set without them.

find      from a data set to its suspects
rules     which labels look wrong; nearest images
oddities  blurred, tiny, flat, unlike all others, or there twice
sheet     suspects as a list to decide in, and as a page
apply     decisions -> a cleaned copy
cli       the verb
"""
