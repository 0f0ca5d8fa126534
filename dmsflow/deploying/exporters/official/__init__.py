"""larq-compute-engine's own converter (TensorFlow) in its own process, to compare `lce` with."""
