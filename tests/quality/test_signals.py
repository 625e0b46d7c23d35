"""Signals of quality against plain NumPy, and what must not change them."""

import itertools
import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from grata.predictions import view_agreement
from grata.quality import (
    Segmentation,
    adic,
    class_compactness,
    overlap,
    segmentation,
    shape_signals,
    soft_overlap,
)

SHAPES = [(2, 3, 7, 9), (2, 3, 4, 5, 6)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
each_activation = pytest.mark.parametrize("activation", ["sigmoid", "softmax"])


def logits(shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def as_numpy(z, activation):
    """Probabilities and masks of the segments, in double precision."""
    z = z.double().numpy()
    if activation == "sigmoid":
        p = 1 / (1 + np.exp(-z))
        return p, p > 0.5
    e = np.exp(z - z.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    first = p.argmax(1)
    return p[:, 1:], np.stack([first == c for c in range(1, z.shape[1])], 1)


def each(p, h):
    """Image and segment, each as vectors."""
    for b, k in itertools.product(*map(range, p.shape[:2])):
        yield b, k, p[b, k].ravel(), h[b, k].ravel()


@each_shape
@each_activation
def test_a_segmentation_and_what_it_says_of_itself(shape, activation):
    z = logits(shape)
    z[0, 0 if activation == "sigmoid" else 1] = -9.0  # a segment that is not predicted
    found = segmentation(z, activation)
    p, h = as_numpy(z, activation)
    np.testing.assert_allclose(found.probabilities, p, atol=1e-6)
    np.testing.assert_array_equal(found.masks, h)
    self_dice, confidence, shares = (np.zeros(p.shape[:2]) for _ in range(3))
    for b, k, q, m in each(p, h):
        shares[b, k] = m.mean()
        self_dice[b, k] = 2 * q[m].sum() / (q.sum() + m.sum()) if m.any() else 1 - q.max()
        confidence[b, k] = q[m].mean() if m.any() else 1 - q.max()
    np.testing.assert_allclose(found.self_dice(), self_dice, atol=1e-5)
    np.testing.assert_allclose(found.confidence(), confidence, atol=1e-5)
    np.testing.assert_allclose(found.shares(), shares, atol=1e-6)
    assert shares[0, 0] == 0 and self_dice[0, 0] > 0.9


def test_the_self_dice_is_the_dice_that_its_probabilities_expect():
    """The expectation over labels that are drawn from the probabilities, up to that of a quotient."""
    found = segmentation(logits((1, 1, 64, 64)), "sigmoid")
    p, h = found.probabilities[0, 0], found.masks[0, 0]
    generator = torch.Generator().manual_seed(1)
    dice = []
    for _ in range(100):
        label = torch.rand(p.shape, generator=generator) < p
        dice.append((2 * (label & h).sum() / (label.sum() + h.sum())).item())
    assert found.self_dice().item() == pytest.approx(np.mean(dice), abs=2e-3)


def test_a_certain_network_expects_all_of_itself_and_an_uncertain_one_less():
    z = logits((1, 2, 8, 8))
    sure, unsure = (segmentation(z * factor, "softmax").self_dice().item() for factor in (100, 0.1))
    assert sure == pytest.approx(1) and 0.4 < unsure < 0.8


@each_shape
@each_activation
def test_flips_of_the_image_change_no_signal_of_a_prediction(shape, activation):
    z, y = logits(shape), logits(shape, 1)
    for axes in [(-1,), (-2,), (-2, -1)]:
        one, other = (segmentation(x, activation) for x in (z, y))
        turned, also = (segmentation(x.flip(axes), activation) for x in (z, y))
        for name in ("self_dice", "confidence", "shares"):
            torch.testing.assert_close(getattr(one, name)(), getattr(turned, name)())
        torch.testing.assert_close(soft_overlap(one, other), soft_overlap(turned, also))
        torch.testing.assert_close(overlap(one, other), overlap(turned, also))
        p, q = (x.sigmoid() if activation == "sigmoid" else x.softmax(1) for x in (z, z.flip(axes)))
        torch.testing.assert_close(class_compactness(p, activation), class_compactness(q, activation))


@each_shape
@each_activation
def test_the_agreement_of_two_predictions(shape, activation):
    z, y = logits(shape), logits(shape, 1)
    y[0], z[1, -1] = z[0], -80.0
    y[1, -1] = -80.0  # nothing at all in both, to the last bit
    if activation == "softmax":
        z[1, 0] = y[1, 0] = 80.0
    one, other = (segmentation(x, activation) for x in (z, y))
    (p, h), (q, g) = (as_numpy(x, activation) for x in (z, y))
    soft, hard = soft_overlap(one, other), overlap(one, other)
    for b, k, u, m in each(p, h):
        v, n = q[b, k].ravel(), g[b, k].ravel()
        if u.max() > 1e-10:
            assert soft[b, k].item() == pytest.approx(2 * (u * v).sum() / ((u**2).sum() + (v**2).sum()), abs=1e-5)
        total = m.sum() + n.sum()
        assert hard[b, k].item() == pytest.approx(2 * (m & n).sum() / total if total else 1)
    torch.testing.assert_close(soft[0], torch.ones_like(soft[0]))
    assert hard[0].eq(1).all() and hard[1, -1] == 1
    torch.testing.assert_close(soft, soft_overlap(other, one))
    torch.testing.assert_close(hard, overlap(other, one))
    probabilities = [x.probabilities for x in (one, other)]
    assert soft.mean().item() == pytest.approx(view_agreement(probabilities), abs=1e-6)


def test_two_empty_predictions_agree_and_an_empty_and_a_full_one_do_not():
    shape = (1, 1, 4, 4)
    empty = Segmentation(torch.zeros(shape), torch.zeros(shape, dtype=torch.bool))
    full = Segmentation(torch.ones(shape), torch.ones(shape, dtype=torch.bool))
    for measured in (overlap, soft_overlap):
        assert [measured(*two).item() for two in ((empty, empty), (full, full), (empty, full))] == [1, 1, 0]
    assert empty.self_dice().item() == full.self_dice().item() == 1


def test_metadata_and_half_precision_change_nothing():
    z = logits((1, 2, 6, 6)).half()
    plain = segmentation(z.float(), "softmax")
    for given in (z, MetaTensor(z), z.clone().requires_grad_()):
        found = segmentation(given, "softmax")
        assert type(found.probabilities) is torch.Tensor and not found.probabilities.requires_grad
        assert torch.equal(found.probabilities, plain.probabilities) and torch.equal(found.masks, plain.masks)


def parts(mask):
    """Sizes of the parts that hang together by faces, by a search from voxel to voxel."""
    left, sizes = set(zip(*map(np.ndarray.tolist, np.nonzero(mask)))), []
    while left:
        waiting, size = [left.pop()], 0
        while waiting:
            place = waiting.pop()
            size += 1
            for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
                near = tuple(c + step * (a == axis) for a, c in enumerate(place))
                if near in left:
                    left.remove(near)
                    waiting.append(near)
        sizes.append(size)
    return sizes


def holes(mask):
    """Number of voxels outside that no way of faces leads to from around the image."""
    outside = np.pad(~mask, 1, constant_values=True)
    labels = outside.copy()
    waiting = [(0,) * mask.ndim]
    labels[waiting[0]] = False
    while waiting:
        place = waiting.pop()
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            near = tuple(c + step * (a == axis) for a, c in enumerate(place))
            if all(0 <= c < s for c, s in zip(near, labels.shape)) and labels[near]:
                labels[near] = False
                waiting.append(near)
    return int(labels.sum())


@pytest.mark.parametrize("shape", [(9, 11), (6, 7, 8), (1, 12), (5, 1, 9)], ids=str)
@pytest.mark.parametrize("share", [0.2, 0.6, 1.0])
def test_the_shape_of_a_mask(shape, share):
    for seed in range(4):
        mask = np.random.default_rng(seed).random(shape) < share
        found, sizes = shape_signals(mask), parts(mask)
        assert found["components"] == len(sizes)
        assert found["largest"] == pytest.approx(max(sizes) / mask.sum())
        filled = mask.sum() + holes(mask)
        # a line or a plane one voxel thick has no inside
        if 1 not in shape:
            assert found["holes"] == pytest.approx(1 - mask.sum() / filled)
        places = np.argwhere(mask)
        ends = [(places[:, a] == 0) | (places[:, a] == n - 1) for a, n in enumerate(shape) if n > 1]
        assert found["border"] == pytest.approx(np.any(ends, axis=0).mean())
        for axis, length in enumerate(shape):
            assert found[f"centre_{axis}"] == pytest.approx((places[:, axis] + 0.5).mean() / length)


def test_the_shape_of_a_mirrored_mask_has_a_mirrored_centre_alone():
    mask = np.random.default_rng(3).random((6, 7, 8)) < 0.4
    found = shape_signals(mask)
    for axis in range(3):
        turned = shape_signals(np.flip(mask, axis))
        assert turned[f"centre_{axis}"] == pytest.approx(1 - found[f"centre_{axis}"])
        for key in found.keys() - {f"centre_{axis}"}:
            assert turned[key] == pytest.approx(found[key])


@pytest.mark.parametrize("shape", [(5, 6), (4, 5, 6)], ids=str)
def test_the_shape_of_nothing_and_of_all(shape):
    empty, full = shape_signals(np.zeros(shape, bool)), shape_signals(np.ones(shape, bool))
    assert empty.keys() == full.keys()
    assert (empty["components"], empty["largest"], empty["holes"], empty["border"]) == (0, 1, 0, 0)
    assert (full["components"], full["largest"], full["holes"]) == (1, 1, 0)
    assert full["border"] == pytest.approx(1 - math.prod(n - 2 for n in shape) / math.prod(shape))
    for axis in range(len(shape)):
        assert empty[f"centre_{axis}"] == full[f"centre_{axis}"] == pytest.approx(0.5)


def test_a_ring_has_a_hole_and_two_diagonal_voxels_are_two_parts():
    ring = np.zeros((7, 7), bool)
    ring[1:6, 1:6], ring[2:5, 2:5] = True, False
    assert shape_signals(ring)["holes"] == pytest.approx(9 / 25)
    assert shape_signals(np.eye(2, dtype=bool)) == {
        "components": 2, "largest": 0.5, "holes": 0, "border": 1, "centre_0": 0.5, "centre_1": 0.5,
    }  # fmt: skip


def compactness(p):
    """Of one image, probabilities ``(C, N)`` in double precision."""
    m = p @ p.T / p.shape[1]
    return (-m * np.log(m + 1e-5)).mean()


@each_shape
def test_class_compactness(shape):
    z = logits(shape)
    p = z.softmax(1).double().flatten(2).numpy()
    expected = [compactness(image) for image in p]
    np.testing.assert_allclose(class_compactness(z.softmax(1), "softmax"), expected, atol=1e-5)
    p = z.sigmoid().double().flatten(2).numpy()
    expected = [np.mean([compactness(np.stack([c, 1 - c])) for c in image]) for image in p]
    np.testing.assert_allclose(class_compactness(z.sigmoid(), "sigmoid"), expected, atol=1e-5)


def test_class_compactness_is_that_of_full_precision_under_autocast():
    p = logits((1, 3, 32, 32)).softmax(1)
    plain = class_compactness(p, "softmax")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(class_compactness(p, "softmax"), plain)


def test_a_certain_prediction_is_more_compact_than_an_uncertain_one():
    z = logits((1, 3, 32, 32))
    sure, unsure = (class_compactness((z * factor).softmax(1), "softmax").item() for factor in (100, 0.1))
    assert sure < unsure


def votes(count=5, shape=(8, 9), share=0.5, seed=0):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed)) < share


@pytest.mark.parametrize("shape", [(8, 9), (4, 5, 6)], ids=str)
def test_adic(shape):
    for seed in range(3):
        v, h = votes(shape=shape, seed=seed), votes(1, shape, seed=9)[0]
        x, y = v.double().flatten(1).numpy(), h.double().flatten().numpy()
        r, u = x.mean(0), x.max(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            e = -np.nan_to_num(r * np.log2(r)) - np.nan_to_num((1 - r) * np.log2(1 - r))
        e = (e - e.min()) / (e.max() - e.min())
        dice = np.mean([2 * (one * y).sum() / (one.sum() + y.sum()) for one in x])
        assert adic(v, h) == pytest.approx(dice * ((1 - e) * u).sum() / u.sum(), abs=1e-5)
        assert 0 <= adic(v, h) <= 1
        assert adic(v.flip(-1), h.flip(-1)) == pytest.approx(adic(v, h), abs=1e-6)
        assert adic(v[torch.randperm(len(v))], h) == pytest.approx(adic(v, h), abs=1e-6)


def test_adic_needs_votes_that_differ():
    one, none = votes(1)[0], torch.zeros(8, 9, dtype=torch.bool)
    assert math.isnan(adic(one.expand(4, -1, -1), one))
    assert math.isnan(adic(none.expand(4, -1, -1), one))
    # an empty mask agrees with nothing
    assert adic(votes(), none) == 0
