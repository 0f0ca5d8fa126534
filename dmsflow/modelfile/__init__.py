"""A model file, whoever wrote it: read what is in it, and run it."""
