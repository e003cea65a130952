"""Labelled images and what the few-shot protocol does with them; nothing here knows a model.

images      folder, table or lists -> ImageSet
scan        what a folder or a table says, nothing opened yet
names       a class's label and its prompt name: the rule between the two
columns     a table's rows, and which of its columns is which
inputs      files, folders, patterns, tables and stdin -> paths to ask about
guard       a file of unknown origin, opened with bounds on what it may cost
pixels      any image as upright RGB
transforms  augmentation that is a function of its seed, and batches of tensors
fewshot     k images per class, base and novel halves, splits as JSON
catalog     the public data sets as a table, and any data set by name or path
archive     a row of that table
fetch       an archive from the network: resumed, checked, unpacked below its folder
readers     the archives' own formats
openmoji    the demo's pictograms
"""
