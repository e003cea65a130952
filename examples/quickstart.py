"""Adapt the small offline model to pictograms: pip install ./packages/pocket '.[demo]', then python
examples/quickstart.py."""

from rmadapter import FewShotClassifier
from rmadapter.data.catalog.openmoji import load_openmoji

pictograms = load_openmoji()  # or read_images("my-images") with train/, test/
train, test = pictograms["train"], pictograms["test"]
classifier = FewShotClassifier()
classifier.fit(train.images, [train.classes[label] for label in train.labels])
print(classifier.score(test.images, [test.classes[label] for label in test.labels]))
print(classifier.predict(test.images[:3]))  # paths, PIL images or arrays
classifier.save("runs/quickstart")
