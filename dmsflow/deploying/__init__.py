"""Trained weights to a model file: the integer graph, export, the check of the written file."""
