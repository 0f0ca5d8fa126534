"""Networks to choose from; each file has `build(channels, resolution, classes) -> Network`."""
