"""An architecture as data, and what it costs: memory, multiply-accumulates, and time on a device."""

from dmsflow.network.network import INPUT, Layer, Network

__all__ = ["INPUT", "Layer", "Network"]
