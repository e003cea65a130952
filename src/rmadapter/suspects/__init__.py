"""Training images to check: wrong labels, copies, odd or broken images; and how to get a data set without them.

find      from a data set to its suspects
rules     which labels look wrong; nearest images
oddities  images that are blurred, tiny, flat, unlike all others, or duplicates
sheet     suspects as a list for decisions, and as a page
apply     decisions -> a cleaned copy
cli       the verb
"""
