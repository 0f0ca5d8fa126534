"""The network as a torch module, and how its weights are trained."""
