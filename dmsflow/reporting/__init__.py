"""What was found: manifests and model files as tables, runs as an HTML report."""
