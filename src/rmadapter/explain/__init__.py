"""Why a model answers what it answers: the nearest training images and the two best classes."""
