"""nnU-Net's predictor with networks that adapt to each image before its prediction."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import GrataError
from ..files import expanded
from ..methods import METHODS, Method, create
from ..methods.gradient import GradientMethod
from ..methods.prepared import without_command
from ..quality import Judgement
from ..session import Session, WindowSelection, judged_together, make_guard, together
from ..views import VIEWS
from .model import TrainedModel

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

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
        windows: selection of windows to adapt to: a :class:`grata.WindowSelection` or its settings. Without a batch
            size, the batch size of the training is taken from the plans.
        affine: treatment of normalization layers without affine parameters, see
            :func:`grata.normalization.ensure_affine`.
        seed: seed of the methods' random generators.
        device: device to compute on.
        tile_step_size: step between windows, as a fraction of their size.
        use_mirroring: whether to predict mirrored images as well, as nnU-Net does.
        prepared: file of ``python -m grata prepare`` for methods that need it, of a single fold; or a folder with
            ``fold_0.safetensors`` and so on.
        bank: folder of the banks of all folds: ``fold_0`` and so on.
        start_from: saved adaptations to start from, named as ``prepared``.
        save_to: folder for the saved adaptation of each fold.
        guard: judge of the mean over the folds: true for the usual one, its settings, or false, see
            :class:`grata.session.QualityGuard`.
        on_reject: what is used of a rejected image: ``source``, ``withhold`` or ``keep``.
        quality: file of ``python -m grata calibrate``.
        session: ``reset`` and ``journal`` of :class:`grata.Session`.

    Attributes:
        sessions: session of each fold.
        methods: method of each fold.
        judgement: judgement of the last case; None: nothing judges.

    Raises:
        GrataError: the model or the method is refused.
    """

    def __init__(
        self,
        model: TrainedModel,
        method: str = "grata",
        settings: Mapping[str, Any] | None = None,
        windows: WindowSelection | Mapping[str, Any] | None = None,
        affine: str = "auto",
        seed: int = 0,
        device: torch.device | str = "cpu",
        tile_step_size: float = 0.5,
        use_mirroring: bool = True,
        *,
        prepared: str | Path | None = None,
        bank: str | Path | None = None,
        start_from: str | Path | None = None,
        save_to: str | Path | None = None,
        guard: bool | Mapping[str, Any] | None = True,
        on_reject: str | None = None,
        quality: str | Path | None = None,
        **session: Any,
    ) -> None:
        model.check()
        self.model = model
        self.device = torch.device(device)
        mirrored = mirror_views(model.checkpoint.mirror_axes, len(model.configuration.patch_size))
        settings = dict(settings or {})
        common = {"activation": model.activation, "seed": seed, "predict_views": mirrored}
        # Settings of these names mean something else in other methods.
        if issubclass(METHODS.get(method, Method), GradientMethod):
            strong_view = {"output_range": "input"}
            if isinstance(settings.get("strong_view"), Mapping):
                settings["strong_view"] = strong_view | settings["strong_view"]
            common |= {"views": mirrored, "strong_view": strong_view}
        judge = {
            "on_reject": on_reject,
            "calibration": quality,
            "activation": model.activation,
            "segments": model.segments,
            "view": next((name for name in mirrored if name != "identity"), "identity"),
        }
        self.sessions: dict[str, Session] = {}
        for fold in model.checkpoints:
            network = model.network(fold).to(self.device)
            own = _of_fold(prepared, fold, "prepared")
            self.sessions[fold] = Session(
                _made(method, network, settings, affine, prepared=own, **common),
                windows,
                None if bank is None else str(expanded(bank) / f"fold_{fold}"),
                _of_fold(start_from, fold, "start_from"),
                None if save_to is None else expanded(save_to) / f"fold_{fold}",
                about={"fold": fold},
                guard=make_guard(guard, **judge),
                **session,
            )
        self.judgement: Judgement | None = None
        self.methods = {fold: adapting.method for fold, adapting in self.sessions.items()}
        self._predictor = self._nnunet_predictor(tile_step_size, use_mirroring)

    def _nnunet_predictor(self, tile_step_size: float, use_mirroring: bool) -> nnUNetPredictor:
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        model = self.model
        # nnU-Net prints a remark when the device is a CPU.
        with contextlib.redirect_stdout(io.StringIO()):
            predictor = nnUNetPredictor(
                tile_step_size=tile_step_size,
                use_mirroring=use_mirroring,
                perform_everything_on_device=self.device.type == "cuda",
                device=self.device,
                allow_tqdm=False,
            )
        predictor.manual_initialization(
            next(iter(self.methods.values())).network,
            model.plans,
            model.configuration,
            None,
            model.dataset,
            model.checkpoint.trainer,
            model.checkpoint.mirror_axes,
        )
        return predictor

    @contextlib.contextmanager
    def case(
        self, data: torch.Tensor, name: str = "", site: str | None = None, unlike: str = ""
    ) -> Iterator[torch.Tensor]:
        """Adapt all folds to one image and predict it; at the end of the block the case is finished.

        Args:
            data: image ``(C, X, Y, Z)``, preprocessed by nnU-Net; a 2D image has ``X`` = 1.
            name: name of the case.
            site: site of the image.
            unlike: how the image differs from the training images; empty: it does not, as far as is known.

        Yields:
            The logits ``(heads, X, Y, Z)``, mean over the folds.

        Raises:
            GrataError: the logits are not all finite, or a method refuses the image.
        """
        with together(
            [session.case(data[None], name, site, unlike=unlike) for session in self.sessions.values()]
        ) as cases:
            # nnU-Net predicts with the same autocast.
            with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
                for case in cases:
                    case.adapt(lambda method, windows: self._batches(method, windows, data))
            for case in cases:
                case.restart_clock()
            # batched, as all else in a session
            logits = judged_together(cases, self.logits(data)[None], self._again)
            self.judgement = cases[0].judgements[0] if cases[0].judgements else None
            yield logits[0]

    def _again(self, images: torch.Tensor, source: bool) -> torch.Tensor:
        """Predict an image ``(1, C, X, Y, Z)`` by all folds, adapted or as they were."""
        with contextlib.ExitStack() as stack:
            for method in self.methods.values() if source else ():
                stack.enter_context(method.source_network())
            return self.logits(images[0])[None]

    def _batches(self, method: Method, windows: WindowSelection, data: torch.Tensor) -> list[torch.Tensor]:
        """Return batches of windows ``(N, C, *patch_size)`` to adapt to, padded and placed as in the prediction."""
        from acvl_utils.cropping_and_padding.padding import pad_nd_image

        configuration = self.model.configuration
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

    @torch.inference_mode()
    def logits(self, data: torch.Tensor) -> torch.Tensor:
        """Return the logits ``(heads, X, Y, Z)`` of the networks in their present state, mean over the folds.

        They are not judged; :meth:`case` does that.

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


def _made(*given: Any, **common: Any) -> Method:
    """Make the method of a fold; what it lacks is not said to be made by a command that is for bundles alone."""
    try:
        return create(*given, **common)
    except GrataError as error:
        raise type(error)(without_command(error.message), error.key) from error


def _of_fold(path: str | Path | None, fold: str, key: str) -> Path | None:
    """Return the file of a fold in a folder, or the file itself.

    Raises:
        GrataError: the folder has no file of the fold.
    """
    if path is None or not expanded(path).is_dir():
        return None if path is None else expanded(path)
    file = expanded(path) / f"fold_{fold}.safetensors"
    if not file.is_file():
        raise GrataError(f"{path} has no fold_{fold}.safetensors. Name a folder with one file for each fold.", key)
    return file
