"""Labelled images and what the few-shot protocol does with them; nothing here knows a model.

images      folder, CSV or lists -> ImageSet; load_image
fewshot     k images per class, base and novel halves, splits as JSON
transforms  augmentation that is a function of its seed, and batches of tensors
"""
