"""Width search for binary neural networks, from images to a measured 1-bit file."""

__version__ = "0.1.0"
