"""An architecture as data, and its costs: memory, operations, time of each layer by a device's profile."""

from dmsflow.network.network import INPUT, Layer, Network

__all__ = ["INPUT", "Layer", "Network"]
