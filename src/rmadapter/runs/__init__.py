"""What is done with finished runs.

cli      the verbs
grow     a run that knows more classes, or was shown more images
compare  runs on one test set, image by image
"""
