"""The embedded corpus: the running interpreter's own standard library, as a `tensorflow_datasets` data set.

It lies in a package of its own because TFDS names a data set after the package that holds its builder.
"""
