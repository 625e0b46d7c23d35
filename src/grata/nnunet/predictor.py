"""nnU-Net's predictor with networks that adapt to each image before its prediction."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..methods import METHODS, Method, create
from ..methods.gradient import GradientMethod
from ..session import Case, WindowSelection
from ..session.session import Batches
from ..views import VIEWS
from .model import TrainedModel

__all__ = ["AdaptedPredictor", "mirror_views"]


class AdaptedPredictor:
    """A predictor that adapts to a preprocessed image first; windows, mirroring and their weights are nnU-Net's own.

    Each fold has its own network and its own method, and their logits are averaged as nnU-Net averages them. nnU-Net
    provides the defaults of a method's settings: the activation by the labels (softmax; sigmoid for regions), the weak
    views by the axes of the mirroring in training, and a strong view on the scale of the image, because nnU-Net's
    images are z-scores.

    Args:
        model: model that :func:`grata.nnunet.load_model` has read.
        method: name of the method.
        settings: settings of the method.
        affine: treatment of normalization layers without affine parameters, see
            :func:`grata.normalization.ensure_affine`.
        seed: seed of the methods' random generators.
        prepared: file of ``python -m grata prepare``, or one for each fold by its key, for methods that need it.
        device: device to compute on.
        tile_step_size: step between windows, as a fraction of their size.
        use_mirroring: whether to predict mirrored images as well, as nnU-Net does.

    Attributes:
        methods: method of each fold.

    Raises:
        GrataError: the model or the method is refused.
    """

    def __init__(
        self,
        model: TrainedModel,
        method: str = "grata",
        settings: Mapping[str, Any] | None = None,
        affine: str = "auto",
        seed: int = 0,
        prepared: str | Path | Mapping[str, str | Path | None] | None = None,
        device: torch.device | str = "cpu",
        tile_step_size: float = 0.5,
        use_mirroring: bool = True,
    ) -> None:
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        model.check()
        self.model = model
        self.device = torch.device(device)
        settings, common = dict(settings or {}), {"activation": model.activation, "seed": seed}
        # Settings of these names mean something else in other methods.
        if issubclass(METHODS.get(method, Method), GradientMethod):
            strong_view = {"output_range": "input"}
            if isinstance(settings.get("strong_view"), Mapping):
                settings["strong_view"] = strong_view | settings["strong_view"]
            views = mirror_views(model.checkpoint.mirror_axes, len(model.configuration.patch_size))
            common |= {"views": views, "strong_view": strong_view}
        self.methods: dict[str, Method] = {}
        for fold in model.checkpoints:
            network = model.network(fold).to(self.device)
            own = prepared.get(fold) if isinstance(prepared, Mapping) else prepared
            self.methods[fold] = create(method, network, settings, affine, prepared=own, **common)
        # nnU-Net prints a remark when the device is a CPU.
        with contextlib.redirect_stdout(io.StringIO()):
            self._predictor = nnUNetPredictor(
                tile_step_size=tile_step_size,
                use_mirroring=use_mirroring,
                perform_everything_on_device=self.device.type == "cuda",
                device=self.device,
                allow_tqdm=False,
            )
        self._predictor.manual_initialization(
            next(iter(self.methods.values())).network,
            model.plans,
            model.configuration,
            None,
            model.dataset,
            model.checkpoint.trainer,
            model.checkpoint.mirror_axes,
        )

    def batches(self, data: torch.Tensor) -> Batches:
        """Return the function that gives a session the batches of an image to adapt to.

        They are windows ``(N, C, *patch_size)``, padded and placed as in the prediction. Without a batch size in the
        selection of windows, the batch size of the training is taken from the plans.

        Args:
            data: image ``(C, X, Y, Z)``, preprocessed by nnU-Net; a 2D image has ``X`` = 1.
        """
        from acvl_utils.cropping_and_padding.padding import pad_nd_image

        configuration = self.model.configuration

        def chosen_windows(method: Method, windows: WindowSelection) -> list[torch.Tensor]:
            padded, _ = pad_nd_image(data, configuration.patch_size, "constant", {"value": 0}, True, None)
            places = self._predictor._internal_get_sliding_window_slicers(padded.shape[1:])

            def crop(chosen: Sequence[tuple[slice | int, ...]]) -> torch.Tensor:
                return torch.stack([padded[place] for place in chosen]).to(self.device)

            if not method.learns or len(places) == 1:
                return [crop(places[:1])]
            # Numbers, because small tensors between large ones would keep the heap from shrinking.
            entropy = [method.uncertainty(crop([place])).item() for place in places]
            chosen = [places[i] for i in windows.choose(entropy, method.generator)]
            size = windows.batch_size or configuration.batch_size
            return [crop(chosen[i : i + size]) for i in range(0, len(chosen), size)]

        return chosen_windows

    def adapt(self, case: Case, data: torch.Tensor) -> None:
        """Let the method of a fold adapt to one image.

        Args:
            case: case of the session of the fold.
            data: image ``(C, X, Y, Z)``, preprocessed by nnU-Net.
        """
        # nnU-Net predicts with the same autocast.
        with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
            case.adapt(self.batches(data))

    @torch.inference_mode()
    def logits(self, data: torch.Tensor) -> torch.Tensor:
        """Return the logits ``(heads, X, Y, Z)`` of the networks in their present state, mean over the folds.

        Args:
            data: image ``(C, X, Y, Z)``, preprocessed by nnU-Net.
        """
        total: torch.Tensor | None = None
        for method in self.methods.values():
            self._predictor.network = method.network
            # nnU-Net loads this list before it predicts, and the network must predict as it is.
            self._predictor.list_of_parameters = [method.network.state_dict()]
            logits = self._predictor.predict_logits_from_preprocessed_data(data)
            total = logits if total is None else total.add_(logits)
        assert total is not None  # a model has at least one fold
        if len(self.methods) > 1:
            total /= len(self.methods)
        return total


def mirror_views(axes: Sequence[int] | None, spatial_dims: int) -> list[str]:
    """Return the names of the weak views that mirror along these axes only, as nnU-Net's test-time augmentation does.

    Args:
        axes: axes, counted from the first spatial axis; None: none.
        spatial_dims: number of spatial dimensions of the network, 2 or 3.
    """
    allowed = {axis - spatial_dims for axis in axes or ()}
    names = []
    for view in VIEWS.values():
        # Half a turn mirrors both axes of its plane.
        mirrored = {*view.flips, *(view.plane if view.turns else ())}
        if not view.quarter_turn and mirrored <= allowed:
            names.append(view.name)
    return names
