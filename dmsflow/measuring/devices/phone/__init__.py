"""A program for phones, which have no Python: it measures there, and prints what it measured."""
