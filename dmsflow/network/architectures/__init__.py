"""Architectures; each file has `build(channels, resolution, classes) -> Network`."""
