"""What was found: manifests and model files as tables, and runs as an HTML report."""
