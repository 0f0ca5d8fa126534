"""Networks by the name that a user gives: one of ours, a file of layers, or a PyTorch module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmsflow import plugin
from dmsflow.errors import DmsflowError
from dmsflow.network.network import Network, read_network

TORCHVISION = "torchvision"


def load_network(name: str, channels: int, resolution: int, classes: int) -> Network:
    """Build a network for such images.

    Args:
        name: of a plug-in; the path of a .py file with `build()`, or of a .json file with a network; a torch.nn.Module,
            its class or a function in a file ("net.py:Net"); or a classifier of torchvision ("torchvision:resnet18").
            Of a module with the layers that stay float beside those that it names itself: "torchvision:resnet18+layer4".

    Raises:
        DmsflowError: no such network, or it does not fit such images.
    """
    name, images = name.removesuffix(":"), (channels, resolution, classes)
    if name.endswith(".json"):
        return _check_images(read_network(Path(name)), name, images)
    file, colon, attribute = name.rpartition(":")
    if colon and (file == TORCHVISION or file.endswith(".py")):
        return _load_module(name, file, attribute, *images)
    defined = plugin.load_plugin("networks", name, defines=())
    if not callable(getattr(defined, "build", None)):
        right = f"define build(channels, resolution, classes) -> Network, or name a PyTorch module in it: {name}:NAME"
        raise DmsflowError(name, "has no build()", right)
    network = plugin.call(name, defined.build, *images)
    if not isinstance(network, Network):
        raise DmsflowError(name, f"build() returned {type(network).__name__}", "return a dmsflow.network.Network")
    return _check_images(network, name, images)


def _check_images(network: Network, name: str, images: tuple[int, int, int]) -> Network:
    made_for = network.channels, network.resolution, network.classes
    if made_for != images:
        what = f"is for (channels, pixels, classes) {made_for}, and the images have {images}"
        raise DmsflowError(name, what, "build it for these images")
    return network


def _load_module(name: str, file: str, attribute: str, channels: int, resolution: int, classes: int) -> Network:
    title, (attribute, *floats) = attribute, attribute.split("+")
    if file == TORCHVISION:
        made: Any = _make_torchvision(attribute, classes)
    else:
        found = plugin.load_plugin("networks", file, defines=())
        if not hasattr(found, attribute):
            raise DmsflowError(
                file, f"has no {attribute}", f"define it, or give the path with another name: {file}:NAME"
            )
        made = getattr(found, attribute)
    from dmsflow.importing import module

    made = module.call_module(made, name, channels, classes)
    return module.read_module(made, title, channels, resolution, classes, floats)


def _make_torchvision(name: str, classes: int) -> Any:
    """A classifier of torchvision without memory for its weights, which are not used."""
    from dmsflow.datasets._torchvision import import_torchvision
    from dmsflow.importing.module import make_without_memory

    models = import_torchvision().models
    if name not in models.list_models(module=models):
        right = "use a classifier of torchvision.models, such as resnet18"
        raise DmsflowError(f"{TORCHVISION}:{name}", "is unknown", right)
    return make_without_memory(lambda: models.get_model(name, weights=None, num_classes=classes))
