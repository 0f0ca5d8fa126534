"""QuickNet small (Bannink et al., arXiv 2011.09398): quicknet with half the channels in its first two sections."""

from __future__ import annotations

from dmsflow.network.architectures import quicknet
from dmsflow.network.network import Network

SECTIONS = {"stage0": 32, "stage1": 64, "stage2": 256, "stage3": 512}


def build(channels: int, resolution: int, classes: int) -> Network:
    return quicknet.make("quicknet-small", SECTIONS, channels, resolution, classes)
