"""The loss of a batch: sliced, under full masks, and compiled, all the same function."""

from __future__ import annotations

import pytest
import torch
from masks import exact_mask
from torch import Tensor

from dmsflow.errors import DmsflowError
from dmsflow.network.network import INPUT, Layer, Network
from dmsflow.training import forward
from dmsflow.training.forward import forward_loss
from dmsflow.training.mask import Mask
from dmsflow.training.model import Active, Model
from dmsflow.training.place import Place

# No pool behind a binary convolution: its outputs tie, and rounding would decide which pixel gets the gradient.
LAYERS = (
    Layer(name="conv0", op="conv", inputs=(INPUT,), width="a", kernel=3, padding=1),
    Layer(name="pool0", op="max_pool", inputs=("conv0",), kernel=2, stride=2),
    Layer(name="norm0", op="batch_norm", inputs=("pool0",)),
    Layer(name="sign1", op="sign", inputs=("norm0",)),
    Layer(name="conv1", op="binary_conv", inputs=("sign1",), width="a", kernel=3, padding=1),
    Layer(name="norm1", op="batch_norm", inputs=("conv1",)),
    Layer(name="add1", op="add", inputs=("norm0", "norm1")),
    Layer(name="concat1", op="concat", inputs=("add1", "norm0")),
    Layer(name="quantize2", op="quantize", inputs=("concat1",)),
    Layer(name="conv2", op="binary_conv", inputs=("quantize2",), width="b", kernel=1),
    Layer(name="norm2", op="batch_norm", inputs=("conv2",)),
    Layer(name="prelu", op="prelu", inputs=("norm2",)),
    Layer(name="concat2", op="concat", inputs=("prelu", "concat1")),
    Layer(name="norm3", op="batch_norm", inputs=("concat2",)),
    Layer(name="relu", op="relu", inputs=("norm3",)),
    Layer(name="average", op="average_pool", inputs=("relu",)),
    Layer(name="dense", op="dense", inputs=("average",), width=3),
)
NETWORK = Network(name="small", channels=2, resolution=8, classes=3, widths={"a": 7, "b": 5}, layers=LAYERS)
SUBNETWORKS: tuple[Active, ...] = (
    {},
    {"a": 4, "b": 3},
    {"a": 6},
    {"a": Mask(torch.tensor([1, 1, 0.7, 0.2, 0.05], dtype=torch.float64), 3), "b": 4},
)


# torch.compile itself does what these two warn of.
AS_TORCH_COMPILES = (
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
)


def model(statistics: bool = False) -> Model:
    torch.manual_seed(0)
    return Model(NETWORK, NETWORK.widths, statistics=statistics).double()


def results(network: Model, active: Active | None, compiled: bool = False) -> dict[str, Tensor]:
    """Loss, fraction right and every gradient."""
    draw = torch.Generator().manual_seed(1)
    images, labels = torch.randn(6, 2, 8, 8, dtype=torch.float64, generator=draw), torch.arange(6) % 3
    network.zero_grad()
    value, right = forward_loss(network, images, labels, Place(images.device, 1, amp=False, compiled=compiled), active)
    value.backward()  # type: ignore[no-untyped-call]
    gradients = {name: torch.zeros_like(t) if t.grad is None else t.grad for name, t in network.tensors().items()}
    return {"loss": value.detach(), "right": right, **gradients}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    for name, tensor in first.items():
        assert torch.allclose(tensor, second[name], rtol=1e-6, atol=1e-8), name


@pytest.mark.parametrize("active", SUBNETWORKS)
def test_masks_over_all_channels_are_slices_and_so_are_their_gradients(active: Active) -> None:
    network = model()
    sliced = results(network, active)
    stack = network.stack_masks(active)
    assert [tuple(each.shape) for each in stack] == [(2, 7), (2, 2)]  # whatever `active` is
    assert_same(sliced, results(network, network.unstack_masks(*stack)))
    assert float(sliced["quantize2.alpha"].abs()) > 1e-6  # its scale counts the channels that are there


@AS_TORCH_COMPILES[0]
@AS_TORCH_COMPILES[1]
def test_compiled_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured by torch.compile, forward and backward, without the C++ that its default backend would write."""
    monkeypatch.setattr(forward, "BACKEND", "aot_eager")
    network = model()
    compiles = len(forward._compiled)
    for active in SUBNETWORKS:
        assert_same(results(network, active), results(network, active, compiled=True))
    assert len(forward._compiled) == compiles + 1
    network.requires_grad_(False)
    gradients = []
    for compiled in (False, True):
        mu = torch.tensor([0.6, 0.7], dtype=torch.float64, requires_grad=True)
        bases = zip(mu, NETWORK.widths.items(), strict=True)
        masks = {name: exact_mask(ratio, 0.2, base, 2, base) for ratio, (name, base) in bases}
        images, labels = torch.ones(6, 2, 8, 8, dtype=torch.float64).cumsum(0).cos(), torch.arange(6) % 3
        value, _ = forward_loss(network, images, labels, Place(images.device, 1, amp=False, compiled=compiled), masks)
        gradients += torch.autograd.grad(value, mu)
    assert torch.allclose(*gradients) and float(gradients[0].abs().min()) > 1e-9
    plain = model(statistics=True)
    twin = model(statistics=True)
    assert_same(results(plain, None), results(twin, None, compiled=True))
    assert torch.allclose(plain.tensors()["norm1.running_mean"], twin.tensors()["norm1.running_mean"])


@AS_TORCH_COMPILES[0]
def test_what_cannot_be_compiled_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where inductor finds no C++ compiler."""

    def fails(*_: object) -> None:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(forward, "BACKEND", fails)
    with pytest.raises(
        DmsflowError,
        match=r"compile: torch cannot compile here \(.*No working C\+\+ compiler found.*set compile to off",
    ):
        results(model(), None, compiled=True)


@AS_TORCH_COMPILES[0]
def test_a_gpu_without_triton_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch wraps most failures of its backend, and these not."""
    from torch._inductor.exc import TritonMissing

    def fails(*_: object) -> None:
        raise TritonMissing(None)

    monkeypatch.setattr(forward, "BACKEND", fails)
    with pytest.raises(DmsflowError, match=r"compile: torch cannot compile here \(Cannot find a working triton.*off"):
        results(model(), None, compiled=True)
