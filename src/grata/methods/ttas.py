"""TTAS: test-time adaptation with shape moments (MICCAI 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import GrataError
from ..networks.parameters import collect_all_parameters
from ..normalization import collect_affine_parameters
from ..objectives.shape_moments import (
    class_weights,
    moment_penalty,
    predicted,
    proportion_divergence,
    soft_moments,
    weighted_entropy,
)
from ..predictions import activate
from ..settings import choice, number, override, setting
from .card import Card
from .gradient import GradientMethod, check_options
from .prepared import require

__all__ = ["TTAS"]

_MOMENTS = ("centroid", "spread")
_ADAPTED = ("all", "affine")
_WEIGHT_DECAY = {"weight_decay": 1e-4}

# with fewer voxels the moments of a structure are noise; the number is that of the authors' code
_LEAST = 10


def _check_moments(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or any(moment not in _MOMENTS for moment in value):
        raise GrataError(f"must be a list of {', '.join(_MOMENTS)}, or empty, got {value!r}.")
    return tuple(value)


def _check_options(value: Any) -> Mapping[str, Any]:
    return _WEIGHT_DECAY if value is None else check_options(value)


class TTAS(GradientMethod):
    """Steps down the entropy, with priors on the shapes of the source's labels (TTAS, Bateson et al., MICCAI 2022).

    .. code-block:: text

        L = mean_i −Σ_c w_c·p_ic·log p_ic                        w_c ∝ 1/τ_c, sum 1
            + size_weight · KL(s ‖ τ)                            s_c = mean_i p_ic
            + moment_weight · Σ_k,c dist²(μ_kc, prior_kc·(1 ± margin))    μ: centroid, spread along each axis
        θ ← Adam(θ, ∇L, lr, weight decay 1e-4)                   150 steps, from the source for each case

    τ and the priors of centroid and spread are means over the source's labels, prepared once. The moments are soft, in
    2D and 3D. They are computed for the foreground (all channels with sigmoid, all but channel 0 with softmax), where
    more than 10 voxels are predicted.

    With sigmoid, each channel is a two-class problem. Its entropy has the weight ``1 − τ_c`` for the foreground and
    ``τ_c`` for the background, its divergence is that of ``(s_c, 1 − s_c)``, and the channels are summed.

    If a volume is larger than the window, each batch of windows takes its own ``steps``, and starts where the batch
    before it ended. Size and moments are then those of the chosen windows. The most uncertain windows have more
    foreground than the windows that gave the priors. The method is therefore meant for images that fit into the network
    as a whole.

    The paper, by its abstract, and the authors' code adapt scale and bias of the normalization layers. Later papers
    that quote it adapt all parameters (``adapted: all``). At this learning rate, that ruined the hippocampus network
    within 10 steps on simulated shifts of its source (docs/results/settings.md). The authors run 150 epochs over the
    slices of a subject with the size term alone, then 150 with one moment, whose prior they take from the subject's own
    predictions. Here all terms act from the start, and the priors come from the source. The authors' code exchanges the
    two ends of the margin, so that moments inside the margin are penalized too; here they are free. The authors' weight
    of 1e-4 is for squared pixels of images of size 384, which is 15 in units of the image.

    Raises:
        GrataError: the class sizes or moments were not prepared, a setting is out of range, or the network has nothing
            to adapt; by ``adapt``: the prepared data belong to other weights, or have other channels or axes than the
            prediction.
    """

    name = "ttas"
    card = Card(
        title="TTAS",
        reference="Bateson et al., Test-time adaptation with shape moments for image segmentation, MICCAI 2022, "
        "arXiv:2205.07983",
        year=2022,
        rule="steps down the class-weighted entropy, with the sizes, centroids and spreads of the source's labels as "
        "priors",
        changes="affine parameters, batch statistics",
        needs=("affine parameters", "class sizes", "shape moments"),
        episodic=True,
        forwards=151,
        backwards=150,
    )

    adapted: str = choice(
        default="affine",
        of=_ADAPTED,
        help="parameters that are adapted: all, or affine for those of the normalization layers",
        in_state=False,
    )
    moments: Sequence[str] = setting(
        default=_MOMENTS,
        check=_check_moments,
        range=f"list of {', '.join(_MOMENTS)}, or empty",
        help="moments with a prior; empty: only the size has one",
    )
    size_weight: float = number(default=1.0, at_least=0, help="weight of the divergence from the size prior")
    moment_weight: float = number(default=15.0, at_least=0, help="weight of the distance from the moments' priors")
    margin: float = number(default=0.1, at_least=0, help="relative margin within which a moment is not penalized")
    lr: float = override(default=5e-4)
    optimizer_options: Mapping[str, Any] | None = override(
        default=None,
        check=_check_options,
        help="further arguments of an optimizer that is named; null: {weight_decay: 0.0001}",
    )
    steps: int = override(default=150)

    def _collect(self) -> dict[str, Any]:
        collect = collect_all_parameters if self.adapted == "all" else collect_affine_parameters
        return dict(collect(self.given))

    def _setup(self) -> None:
        super()._setup()
        self._sizes: torch.Tensor = require(self.prepared(), "class_sizes", self.name)
        self._priors = {name: require(self.prepared(), name, self.name) for name in self.moments}

    def _loss(self, x: torch.Tensor) -> torch.Tensor:
        logits = self._logits(x)
        self._check_shape(logits)
        tau = self._sizes.to(logits)
        size, centroid, spread = soft_moments(activate(logits, self.activation))
        loss = weighted_entropy(logits, class_weights(tau, self.activation), self.activation)
        loss = loss + self.size_weight * proportion_divergence(size, tau, self.activation)
        there = predicted(logits.detach(), self.activation, _LEAST)
        foreground = slice(int(self.activation == "softmax"), None)
        for name, moments in (("centroid", centroid), ("spread", spread)):
            if name in self.moments:
                prior = self._priors[name].to(logits)[foreground]
                penalty = moment_penalty(moments[:, foreground], prior, there[:, foreground], self.margin)
                loss = loss + self.moment_weight * penalty
        return loss

    def _check_shape(self, logits: torch.Tensor) -> None:
        channels, axes = logits.shape[1], logits.ndim - 2
        have = {len(self._sizes), *(len(prior) for prior in self._priors.values())}
        if have != {channels}:
            raise GrataError(
                f"its class sizes are of {len(self._sizes)} channels, and the network predicts {channels}. "
                "Run python -m grata prepare again, with the network's own segments and activation.",
                key="prepared",
            )
        if any(prior.shape[1] != axes for prior in self._priors.values()):
            raise GrataError(
                f"its shape moments are not those of {axes}D images. Run python -m grata prepare again, with "
                "the images that the network is given, or set moments to [].",
                key="prepared",
            )
