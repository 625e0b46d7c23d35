import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from grata.errors import GrataError
from grata.views import StrongView, brightness, contrast, gamma_inverted, gaussian_blur, min_max

SHAPES = [(3, 12, 10), (2, 7, 9, 8)]


def image(shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def draw(view, x, seed=0):
    return view(x, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5, 4.0])
def test_blur_equals_scipy_with_a_mirrored_border(shape, sigma):
    x = image(shape)
    blurred = gaussian_blur(x, [sigma] * (shape[0] - 1) + [0.0])
    for channel in range(shape[0] - 1):
        expected = gaussian_filter(x[channel].double().numpy(), sigma, mode="reflect", radius=int(4 * sigma + 0.5))
        np.testing.assert_allclose(blurred[channel].numpy(), expected, atol=1e-6)
    assert torch.equal(blurred[-1], x[-1])


@pytest.mark.parametrize("shape", SHAPES)
def test_each_transform_equals_its_formula_channel_by_channel(shape):
    x = image(shape)
    values = [0.6 + 0.4 * c for c in range(shape[0])]
    for channel, value in enumerate(values):
        c = x[channel].double()
        z = -c
        r = z.max() - z.min() + 1e-7
        expected = {
            brightness: c * value,
            contrast: ((c - c.mean()) * value + c.mean()).clamp(c.min(), c.max()),
            gamma_inverted: -(((z - z.min()) / r) ** value * r + z.min()),
        }
        for transform, result in expected.items():
            torch.testing.assert_close(transform(x, values)[channel].double(), result, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_view_lies_in_the_unit_range_leaves_its_input_alone_and_follows_the_seed(shape):
    x = torch.stack([image(shape, s) for s in range(3)])
    kept = x.clone()
    a, b, c = draw(StrongView(), x), draw(StrongView(), x), draw(StrongView(), x, seed=1)
    assert torch.equal(x, kept)
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert a.shape == x.shape and a.dtype == x.dtype
    for sample in a:
        assert sample.min() == 0 and sample.max() == 1


def test_samples_and_channels_are_drawn_apart():
    view = StrongView(probabilities=(1, 0, 0, 0, 0))
    out = draw(view, torch.ones(4, 2, 6, 6) * torch.linspace(0.1, 1, 6))
    ratios = out.amax((2, 3))
    assert len({round(float(r), 5) for sample in ratios for r in sample}) > 4


def test_probabilities_and_ranges_are_those_of_the_fact_sheet():
    counts, factors = torch.zeros(5), []
    x = image((1, 6, 6))[None]
    names = ["brightness", "contrast", "gamma", "noise", "blur"]
    for i in range(5):
        only = tuple(0.75 if j == i and i < 3 else 0.5 if j == i else 0.0 for j in range(5))
        for seed in range(400):
            out = draw(StrongView(probabilities=only, blur_channel_probability=1.0), x, seed)
            changed = not torch.equal(out[0], min_max(x[0]))
            # min-max scaling undoes a brightness that is one factor for the only channel
            counts[i] += changed if names[i] != "brightness" else 0
    for seed in range(400):
        out = draw(StrongView(probabilities=(0.75, 0, 0, 0, 0)), torch.cat([x, x], 1), seed)
        low, high = sorted(float(v) for v in out[0].amax((1, 2)))
        factors.append(low / high)
        counts[0] += low != high
    torch.testing.assert_close(counts / 400, torch.tensor([0.75, 0.75, 0.75, 0.5, 0.5]), atol=0.08, rtol=0)
    assert min(factors) > 1 / 3 - 0.05


def test_gamma_and_contrast_fall_on_either_side_of_one_with_equal_chance():
    from grata.views.strong import _about_one

    values = _about_one((0.5, 2.0), 4000, torch.Generator().manual_seed(0))
    assert values.min() >= 0.5 and values.max() <= 2.0
    assert float((values < 1).float().mean()) == pytest.approx(0.5, abs=0.03)


def test_on_another_scale_the_view_keeps_the_range_of_its_input():
    x = image((1, 2, 8, 8)) * 700 - 1000
    out = draw(StrongView(output_range="input"), x)
    assert out.min() == pytest.approx(x.min().item(), rel=1e-5) and out.max() == pytest.approx(x.max().item(), rel=1e-5)


def test_a_constant_image_stays_finite():
    assert torch.isfinite(draw(StrongView(probabilities=(1, 1, 1, 1, 1)), torch.ones(1, 1, 5, 5))).all()


@pytest.mark.parametrize(
    "settings", [{"blur": (2.0, 1.0)}, {"probabilities": (1, 1, 1)}, {"output_range": "hu"}, {"noise": (-0.1, 0.1)}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(GrataError, match=f"^{next(iter(settings))}: must be"):
        StrongView(**settings)
