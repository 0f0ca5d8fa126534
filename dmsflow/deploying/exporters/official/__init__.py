"""larq-compute-engine's own converter, which needs TensorFlow, in a process of its own."""
