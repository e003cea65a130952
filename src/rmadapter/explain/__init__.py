"""Why a model answers what it answers: the nearest training images and the two best classes.

why    run and images -> explanations
cards  explanations as a page
cli    the verb
"""
