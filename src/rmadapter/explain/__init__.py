"""Why a model answers what it answers: the nearest training images, the two best classes, a map of what mattered.

maps   from a fitted model and pixels to what each patch counted
why    run and images -> explanations
cards  explanations as a page
cli    the verb
"""
