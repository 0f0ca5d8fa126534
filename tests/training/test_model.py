"""One model for search and training: masks, slices, and the gradient that reaches the widths."""

from __future__ import annotations

from unittest import mock

import gated
import pytest
import torch
import torch.nn.functional as F
from made_up import with_signs
from masks import exact_mask
from torch import Tensor

from dmsflow.network.architectures import quicknet
from dmsflow.network.network import INPUT, Layer, Network
from dmsflow.plugin import list_plugins, load_plugin
from dmsflow.training import model as model_module
from dmsflow.training.mask import Mask
from dmsflow.training.model import BatchNorm, Model, Quantise, Sign, best_effort_initialise, centre_quantisers

BUILDERS = {name: load_plugin("networks", name).build for name in list_plugins("networks")} | {"gated": gated.build}


def supernet(name: str, capacity: float = 0.5, dtype: torch.dtype = torch.float64) -> Model:
    torch.manual_seed(0)
    built = name.removesuffix(" with signs")
    network = BUILDERS[built](3, 32, 10)
    network = network if built == name else with_signs(network)
    widths = {key: max(4, int(base * capacity)) for key, base in network.widths.items()}
    model = Model(network, widths, statistics=False).to(dtype)
    with torch.no_grad():
        for op in model.ops:
            if isinstance(op, Sign):  # the mean of few whole numbers can be one, and at it rounding would decide
                op.shift.normal_(std=0.1)
    return model


def narrow(model: Model) -> dict[str, int]:
    return {key: max(2, width - 2 - index % 3) for index, (key, width) in enumerate(model.widths.items())}


def hard(model: Model, widths: dict[str, int]) -> dict[str, Mask]:
    masks = {}
    for key, capacity in model.widths.items():
        values = (torch.arange(capacity) < widths[key]).to(torch.float64)
        masks[key] = Mask(values, widths[key])
    return masks


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", [*BUILDERS, "vgg11 with signs", "resnet18 with signs"])
def test_hard_masks_and_slices_are_the_plain_network(name: str) -> None:
    model = supernet(name)
    widths = narrow(model)
    plain = Model(model.network, widths, statistics=False).double()
    best_effort_initialise(plain, model)
    expected = plain(images())
    assert torch.allclose(model(images(), widths), expected, atol=1e-10)
    assert torch.allclose(model(images(), hard(model, widths)), expected, atol=1e-10)
    assert not torch.allclose(model(images()), expected, atol=1e-3)


@pytest.mark.parametrize("name", [*BUILDERS, "vgg11 with signs"])
def test_best_effort_initialisation_keeps_the_first_rows_and_columns(name: str) -> None:
    """Eq. 9-10, growing and shrinking; the first of every part where channels are joined."""
    old = supernet(name)
    grown = Model(old.network, {key: width + 3 for key, width in old.widths.items()}, statistics=False).double()
    best_effort_initialise(grown, old)
    for key, tensor in old.tensors().items():
        if name not in ("densenet", "gated"):
            kept = tuple(slice(0, size) for size in tensor.shape)
            assert torch.equal(grown.tensors()[key][kept], tensor)
    assert torch.allclose(grown(images(), old.widths), old(images()), atol=1e-10)
    back = Model(old.network, old.widths, statistics=False).double()
    best_effort_initialise(back, grown)
    assert all(torch.equal(back.tensors()[key], tensor) for key, tensor in old.tensors().items())


def loss_at(model: Model, mu: Tensor, sigma: float = 0.25) -> Tensor:
    masks = {
        key: exact_mask(mu[index], sigma, base, 2, model.widths[key])
        for index, (key, base) in enumerate(model.network.widths.items())
    }
    labels = torch.arange(8) % 10
    return F.cross_entropy(model(images(8), masks), labels)


def smooth(x: Tensor, alpha: Tensor) -> Tensor:
    """What the quantiser's straight-through gradient is the exact derivative of."""
    return x.clamp(min=0).minimum(alpha)


def smooth_sign(x: Tensor, shift: Tensor) -> Tensor:
    """The same of a sign's."""
    u = (x - shift.view(-1, 1, 1)).clamp(-1, 1)
    return u * (2 - u.abs())


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=[pytest.mark.slow] * (name == "densenet")) for name in BUILDERS),
        *("vgg11 with signs", "resnet18 with signs"),
    ],
)
def test_the_width_gradient_is_the_finite_difference(name: str) -> None:
    """∂L_valid/∂mu in float64, with the quantiser's step replaced by the ramp it is differentiated as."""
    model = supernet(name, capacity=1.0)
    mu = torch.full((len(model.widths),), 0.67, dtype=torch.float64, requires_grad=True)
    length = (
        1e-8 if name.startswith("quicknet") else 1e-9
    )  # a longer one crosses kinks, of a shorter one rounding is left
    with mock.patch.multiple(model_module, quantise=smooth, sign=smooth_sign):
        (gradient,) = torch.autograd.grad(loss_at(model, mu), mu)
        for index in range(0, len(mu), 3):
            step = torch.zeros_like(mu)
            step[index] = length
            with torch.no_grad():
                difference = (loss_at(model, mu + step) - loss_at(model, mu - step)) / (2 * length)
            assert float(gradient[index]) == pytest.approx(float(difference), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", BUILDERS)
def test_every_width_has_a_gradient_far_from_zero(name: str) -> None:
    model = supernet(name, capacity=1.0)
    mu = torch.full((len(model.widths),), 0.67, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss_at(model, mu), mu)
    assert float(gradient.abs().min()) > 1e-5


def test_the_last_width_has_the_exact_finite_difference() -> None:
    """Nothing is quantised behind the last mask, so here the true step function agrees as well."""
    model = supernet("vgg11", capacity=1.0)
    mu = torch.full((len(model.widths),), 0.67, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss_at(model, mu), mu)
    step = torch.zeros_like(mu)
    step[-1] = 1e-8
    with torch.no_grad():
        difference = (loss_at(model, mu + step) - loss_at(model, mu - step)) / 2e-8
    assert float(gradient[-1]) == pytest.approx(float(difference), rel=1e-5)


def test_batch_norm_would_cancel_a_mask_before_the_quantiser() -> None:
    """Correction 3: Eq. 11 as printed scales output rows, which the batch norm behind them removes."""
    model = supernet("vgg11", capacity=1.0)
    scale = torch.ones(model.widths["conv3"], dtype=torch.float64, requires_grad=True)
    convolution = model.ops[[layer.name for layer in model.network.layers].index("conv3")]
    plain = type(convolution).forward

    def scaled(self: torch.nn.Module, *args: object, **kwargs: object) -> Tensor:
        out = plain(self, *args, **kwargs)
        return out * scale.view(1, -1, 1, 1) if self is convolution else out

    with mock.patch.object(type(convolution), "forward", scaled):
        loss = F.cross_entropy(model(images(8)), torch.arange(8) % 10)
        (as_printed,) = torch.autograd.grad(loss, scale)
    mask = Mask(torch.ones(model.widths["conv3"], dtype=torch.float64, requires_grad=True), model.widths["conv3"])
    loss = F.cross_entropy(model(images(8), {"conv3": mask}), torch.arange(8) % 10)
    (corrected,) = torch.autograd.grad(loss, mask.values)
    assert float(as_printed.abs().max()) < 1e-3 * float(corrected.abs().max())


def test_the_search_normalises_with_the_batch() -> None:
    """Correction 8: no running statistics, in evaluation neither."""
    model = supernet("vgg11").eval()
    assert torch.allclose(model(images()), model(3 * images()), atol=1e-4)


def test_alphas_and_scales_behind_a_pool_stay_positive() -> None:
    model = supernet("vgg11")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(-1.0)
    model.constrain()
    assert all(op.alpha > 0 for op in model.ops if isinstance(op, Quantise))
    pooled = [op for op in model.ops if isinstance(op, BatchNorm) and op.positive]
    assert len(pooled) == 5 and all(bool((op.weight > 0).all()) for op in pooled)
    free = [op for op in model.ops if isinstance(op, BatchNorm) and not op.positive]
    assert all(bool((op.weight == -1).all()) for op in free)


@pytest.mark.parametrize("name", BUILDERS)
def test_full_precision_shares_every_tensor_but_those_of_quantisers(name: str) -> None:
    network = BUILDERS[name](1, 32, 10)
    binary, full = (Model(network, network.widths, precision=p) for p in ("binary", "float"))
    missing = binary.tensors().keys() - full.tensors().keys()
    assert missing and all(key.endswith((".alpha", ".shift")) for key in missing)
    assert full.tensors().keys() <= binary.tensors().keys()
    assert full(torch.randn(2, 1, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", BUILDERS)
def test_imagenet_networks_run(name: str) -> None:
    network = BUILDERS[name](3, 64, 7)
    widths = dict.fromkeys(network.widths, 8)
    assert Model(network, widths)(torch.randn(2, 3, 64, 64)).shape == (2, 7)


def test_layer_names_are_free() -> None:
    """Names that torch's own containers would refuse."""
    layers = (
        Layer(name="keys", op="conv", inputs=(INPUT,), width="pop"),
        Layer(name="half.way", op="average_pool", inputs=("keys",)),
        Layer(name="train", op="dense", inputs=("half.way",), width=2),
    )
    network = Network(name="odd", channels=1, resolution=4, classes=2, widths={"pop": 3}, layers=layers)
    model = Model(network, network.widths)
    assert set(model.tensors()) == {"keys.weight", "train.weight", "train.bias"}


@pytest.mark.parametrize("name", ["vgg11", "resnet18"])
def test_centred_quantisers_turn_half_of_their_inputs_on(name: str) -> None:
    """Of a new network: at alpha = 1 and no bias 31 % are on behind a batch norm, and more or fewer behind a ReLU."""
    torch.manual_seed(0)
    network = BUILDERS[name](3, 32, 10)
    on: dict[bool, list[float]] = {}
    for centred in (False, True):
        model = Model(network, network.widths)
        if centred:
            centre_quantisers(model)
        found = on.setdefault(centred, [])
        for op in model.ops:
            if isinstance(op, Quantise):
                op.register_forward_hook(lambda _, __, out, found=found: found.append(float((out > 0).float().mean())))
        model(torch.randn(32, 3, 32, 32))
    assert all(abs(share - 0.31) < 0.04 for share in on[False]) == (name == "vgg11")
    assert all(abs(share - 0.5) < 0.12 for share in on[True]), on[True]


def test_a_new_sign_turns_half_of_its_inputs_on_as_it_is() -> None:
    network = with_signs(BUILDERS["resnet18"](3, 32, 10))
    model = Model(network, network.widths)
    centre_quantisers(model)
    assert all((op.bias == 0).all() for op in model.ops if isinstance(op, BatchNorm))
    assert all((op.shift == 0).all() for op in model.ops if isinstance(op, Sign))


def test_a_blur_begins_with_binomial_weights() -> None:
    """Behind a max pool of stride 1 and nowhere else: in the stem of a QuickNet a depthwise convolution begins anew."""
    network, row = quicknet.build(3, 32, 10), torch.tensor([0.25, 0.5, 0.25])
    tensors = Model(network, network.widths).tensors()
    for section in range(3):
        blur = torch.outer(row, row).expand(network.widths[f"stage{section}"], 1, 3, 3)
        assert torch.equal(tensors[f"stage{section + 1}_blur.weight"], blur)
    assert len(tensors["stem_depthwise.weight"].unique()) > 9


def test_a_convolution_pads_signs_with_minus_one() -> None:
    network = with_signs(BUILDERS["vgg11"](3, 32, 10))
    model = Model(network, network.widths)
    (conv,) = (op for layer, op in zip(network.layers, model.ops, strict=True) if layer.name == "conv1")
    off = -torch.ones(1, network.widths["conv0"], 5, 5)
    found = conv(off, active_in=None, active_out=None)  # -1 at every pixel, around the image too
    assert torch.allclose(found, found[..., :1, :1].expand_as(found), atol=1e-5) and found.shape[2:] == (5, 5)


def test_a_float_network_has_no_quantiser_to_centre() -> None:
    network = BUILDERS["vgg11"](3, 32, 10)
    model = Model(network, network.widths, precision="float")
    before = [parameter.clone() for parameter in model.parameters()]
    centre_quantisers(model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
