"""Labelled images and what the few-shot protocol does with them; nothing here knows a model.

images      data of any format, or lists -> ImageSet
sources     which format a path has, and what it says of its images
scan        what a folder of class folders or a table says, nothing opened yet
imagefolder, saved, coco, yolo, label_studio, fiftyone, webdataset      a format each
marks       labels with and without boxes: those of an image, or the boxes cut out
unpacked    archives and packed images as files of the cache
memory      what a Python program holds: data frames, torchvision, pairs
ignored     what is said of files that are not read
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
