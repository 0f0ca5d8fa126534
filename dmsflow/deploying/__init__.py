"""From trained weights to a checked model file: integer graph, targets, exporters."""
