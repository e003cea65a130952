"""Labelled images and what the few-shot protocol does with them; independent of models.

images      data of any format, or lists -> ImageSet
sources     finds out the format of a path and lists its images
scan        lists the images of class folders or a table without opening them
imagefolder, saved, coco, yolo, label_studio, fiftyone, webdataset      one format each
marks       annotations with and without boxes: labels of whole images, or crops
unpacked    archives and embedded images as files in the cache
memory      data in memory: data frames, torchvision, pairs
ignored     the note on files that are not read
names       the rule between a class's label and its prompt name
columns     a table's rows, and which of its columns is which
inputs      files, folders, patterns, tables and stdin -> paths of images to predict
guard       opens files of unknown origin within bounds on memory and time
pixels      any image as upright RGB
transforms  augmentation that is a function of its seed, and batches of tensors
fewshot     shots per class, base and novel halves, splits as JSON
catalog     the public data sets as a table, and any data set by name or path
archive     a row of that table
fetch       downloads archives (resumed, checked) and unpacks them safely
readers     the formats of the public archives
openmoji    the demo's pictograms
"""
