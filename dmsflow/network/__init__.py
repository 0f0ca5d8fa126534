"""An architecture as data, and its costs: memory, operations, time of its layers on a device."""

from dmsflow.network.network import INPUT, Layer, Network

__all__ = ["INPUT", "Layer", "Network"]
