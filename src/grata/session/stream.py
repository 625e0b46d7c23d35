"""Adapt a network to a stream of images in a few lines, without an engine: for notebooks and scripts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer
from monai.networks import eval_mode
from monai.utils import CommonKeys
from monai.utils.enums import PostFix
from torch import nn

from ..bank import AdapterBank
from ..errors import GrataError
from ..files import expanded
from ..methods import Method, Prepared, create
from ..methods.predictive import logits_in
from ..networks.scripts import open_script
from ..networks.weights import read_state
from ..normalization import AttachedAffine
from ..predictions import activate, check_activation
from ..quality import UNEXPECTED, Judgement, worst
from .guard import Guard
from .judge import QualityGuard
from .mark import loosen, restore
from .resets import ResetPolicy
from .session import Session, numbered
from .windows import WindowSelection

__all__ = ["Adapted", "AdaptedStream", "adapt", "restore"]

IMAGE, SITE = CommonKeys.IMAGE.value, "site"


@dataclass(frozen=True)
class Adapted:
    """One batch, predicted by the network that was just adapted to it.

    Attributes:
        item: item of the stream, a tensor or a mapping, as it was.
        prediction: what the network returned, through the inferer; on the inferer's device.
        logits: logits ``(B, C, ...)`` in the prediction.
        record: record of the case: losses, cosine, learning rate, flags, see :class:`grata.session.Case`.
        judgements: judgement of each image: verdict, reasons and quality; empty without the guard.
        activation: activation that turns logits into probabilities; None: it is not known.
    """

    item: Any
    prediction: Any
    logits: torch.Tensor
    record: dict[str, Any]
    activation: str | None = None
    judgements: tuple[Judgement, ...] = ()

    @property
    def verdict(self) -> str:
        """The worst verdict on the batch: ``ok``, ``review``, ``reject``, or ``unjudged``."""
        return worst([judgement.verdict for judgement in self.judgements])

    @property
    def probabilities(self) -> torch.Tensor:
        """Probabilities ``(B, C, ...)``, 0 to 1, computed from the logits at each access.

        Raises:
            GrataError: no activation was given.
        """
        if self.activation is None:
            raise GrataError("say sigmoid or softmax, as the network was trained.", key="activation")
        return activate(self.logits, self.activation)


class AdaptedStream(Iterator[Adapted]):
    """Stream of :func:`adapt`: each time it is asked it takes one batch, adapts to it and predicts it.

    A batch that fails leaves no trace in the network; the next one can be asked for.

    Attributes:
        session: session that adapts; its ``restore()`` brings the source network back, its ``state_dict()`` holds the
            whole adaptation.
        method: method of the session.
        attached: affine parameters that were attached to the network, see :func:`grata.normalization.attach_affine`;
            None: none were.
    """

    def __init__(
        self,
        session: Session,
        items: Iterator[Any],
        inferer: Inferer,
        activation: str | None,
        output: str | int | None,
    ) -> None:
        self.session = session
        self.method = session.method
        self.attached: AttachedAffine | None = session.method.attached
        self._items = enumerate(items)
        self._inferer = inferer
        self._activation = activation
        self._output = output

    def __next__(self) -> Adapted:
        try:
            return self._adapted(*next(self._items))
        except StopIteration:
            raise
        except BaseException:
            # what is no batch of images fails before there is a case
            loosen(self.session)
            raise

    def _adapted(self, index: int, item: Any) -> Adapted:
        images, sites, meta = _opened(item, index)
        unlike = item.get(UNEXPECTED) if isinstance(item, Mapping) else None
        network = self.session.network
        images = images.to(next((p.device for p in network.parameters()), images.device))
        with self.session.case(images, numbered(f"item-{index}", len(images)), sites, meta, unlike) as case:
            case.adapt(self._inferer)
            with eval_mode(network):
                prediction = case.judge(self._inferer(case.images, network))
            logits = logits_in(prediction, self._output)
        return Adapted(item, prediction, logits, case.record, self._activation, tuple(case.judgements))


def adapt(
    network: nn.Module | str | os.PathLike[str],
    images: torch.Tensor | Iterable[torch.Tensor | Mapping[str, Any]],
    method: str | type[Method] | Method = "grata",
    *,
    activation: str | None = None,
    output: str | int | None = None,
    settings: Mapping[str, Any] | None = None,
    inferer: Inferer | None = None,
    windows: WindowSelection | Mapping[str, Any] | None = None,
    affine: str = "auto",
    reset: ResetPolicy | str | Mapping[str, Any] | None = None,
    prepared: Prepared | str | Path | None = None,
    seed: int = 0,
    site: str | None = None,
    bank: AdapterBank | str | os.PathLike[str] | Mapping[str, Any] | None = None,
    start_from: str | os.PathLike[str] | None = None,
    save_to: str | os.PathLike[str] | None = None,
    guard: Guard | QualityGuard | Mapping[str, Any] | bool | None = True,
) -> AdaptedStream:
    """Adapt a network to a stream of images, one batch after the other, and predict each by what it was adapted to.

    Nothing is adapted until the iterator is asked for a batch. The network is changed in place; its weights at the
    first batch are the source, and :func:`grata.restore` brings them back. A network that another stream adapts is
    refused; once that stream is gone or has failed, the next one restores the source weights and begins from them.

    Args:
        network: source network with its weights loaded, or a TorchScript file, which is loaded onto the CPU.
        images: one batch ``(B, C, H, W)`` or ``(B, C, D, H, W)`` of real numbers, scaled as in training; or an iterable
            of such batches, each a tensor or a mapping with one under ``image``, such as MONAI's ``DataLoader``, of
            which one is taken at a time. They are moved to the network's device. The ``site`` of a mapping is for reset
            policies and banks that ask for it.
        method: name of a method, a key of :data:`grata.methods.METHODS`; its class; or an instance for this network,
            which has its settings already.
        activation: ``sigmoid`` (multi-label) or ``softmax`` (multi-class); only methods that do not look at the
            prediction do without.
        output: key or index of the logits, for a network that returns a dict, list or tuple.
        settings: settings of the method.
        inferer: inferer that predicts, and that the network is adapted through: ``SimpleInferer`` if None, or
            ``SlidingWindowInferer`` for volumes that do not fit into memory at once.
        windows: choice of the windows of a large volume to adapt on, see :class:`grata.session.WindowSelection`.
        affine: what is adapted where normalization layers have no affine parameters, see
            :func:`grata.normalization.ensure_affine`.
        reset: policy that says when to start from the source network again, see :mod:`grata.session.resets`;
            None: as the method's paper has it.
        prepared: file of ``grata prepare``, for methods that need it.
        seed: seed of the method's own random generator.
        site: site of the images that name none.
        bank, start_from, save_to: where the adaptation is kept, and what to go on from, see :class:`grata.Session`.
        guard: judge of each prediction: true for the usual one, its settings, or false, see :class:`grata.Session`.

    Returns:
        An iterator over :class:`Adapted`.

    Raises:
        GrataError: the file is not a TorchScript network; or the method refuses the network, such as one that has
            nothing to adapt or was traced in evaluation mode. While iterating: an item holds no batch of images, or its
            prediction is not finite.
        RunError: while iterating: another stream adapts the network.

    Example:
        >>> import torch
        >>> from monai.networks.nets import UNet
        >>> network = UNet(2, 1, 2, channels=(8, 16, 32), strides=(2, 2), norm="batch")  # and its weights loaded
        >>> images = (torch.rand(1, 1, 64, 64) for _ in range(3))  # or a DataLoader
        >>> stream = adapt(network, images, method="grata", activation="softmax", settings={"lr": 1e-4})
        >>> for adapted in stream:
        ...     labels = adapted.probabilities.argmax(1)
        ...     print(tuple(labels.shape), adapted.record["flags"])
        (1, 64, 64) []
        (1, 64, 64) []
        (1, 64, 64) []
        >>> changed = restore(network)
    """
    if activation is not None:
        check_activation(activation)
    if not isinstance(images, Iterable):
        raise GrataError(f"give a batch or an iterable of batches, got {type(images).__name__}.", key="images")
    items = iter([images] if isinstance(images, torch.Tensor | Mapping) else images)
    # parameters made in inference mode could never be trained
    with torch.inference_mode(False):
        network = _load(network) if isinstance(network, str | os.PathLike) else network
        _check(network)
        common = {"activation": activation, "output": output, "prepared": prepared, "seed": seed}
        made = _made(method, network, settings, affine, common)
        try:
            session = Session(made, windows, bank, start_from, save_to, reset=reset, site=site, guard=guard)
        except GrataError:
            if made is not method and made.attached is not None:
                made.attached.detach()
            raise
    # a setting of that name is the method's
    activation, output = getattr(made, "activation", activation), getattr(made, "output", output)
    return AdaptedStream(session, items, inferer or SimpleInferer(), activation, output)


def _made(
    method: str | type[Method] | Method,
    network: nn.Module,
    settings: Mapping[str, Any] | None,
    affine: str,
    common: Mapping[str, Any],
) -> Method:
    if isinstance(method, Method):
        return _instance(method, network, {"settings": settings or None, **common, "seed": common["seed"] or None})
    return create(method, network, settings, affine, **common)


def _instance(method: Method, network: nn.Module, given: Mapping[str, Any]) -> Method:
    """Return ``method``, which was made for ``network`` and has its settings; ``given`` must not say otherwise."""
    for key, value in given.items():
        if value is not None and value != getattr(method, key, None):
            raise GrataError(f"{method.name} is an instance that has its settings. Give this one to its class.", key)
    if method.given is not network:
        raise GrataError("the instance was made for another network. Give that network, or the class.", key="method")
    return method


def _load(path: str | os.PathLike[str]) -> nn.Module:
    path = expanded(path)
    if not path.is_file():
        raise GrataError(f"{path} is not a file.", key="network")
    try:
        return open_script(path)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
    try:
        read_state(path)
    except GrataError:
        raise GrataError(
            f"{path} is not a TorchScript network ({reason}). Give one that torch.jit.script and "
            "torch.jit.save wrote, or the Python network.",
            key="network",
        ) from None
    raise GrataError(
        f"{path} holds weights alone, and not what they are the weights of. Make that network, load them by "
        "network.load_state_dict(torch.load(path, weights_only=True)), and give the network.",
        key="network",
    )


def _check(network: Any) -> None:
    if not isinstance(network, nn.Module):
        what = "a state dict, which is weights alone: load it into a network" if isinstance(network, Mapping) else ""
        raise GrataError(f"give a torch.nn.Module or a TorchScript file, got {what or repr(network)}.", key="network")
    if any(parameter.is_inference() for parameter in network.parameters()):
        raise GrataError(
            "it was made or loaded inside torch.inference_mode, and its weights can never be trained. Make it "
            "outside; adapting inside is fine.",
            key="network",
        )


def _opened(item: Any, index: int) -> tuple[torch.Tensor, Any, Mapping[str, Any]]:
    """Return the images, their sites and metadata in an item of the stream."""
    images, sites, meta = item, None, {}
    if isinstance(item, Mapping):
        if IMAGE not in item:
            raise GrataError(f"item {index} has no key {IMAGE!r}, only {', '.join(map(str, item))}.", key="images")
        images, sites, meta = item[IMAGE], item.get(SITE), item.get(PostFix.meta(IMAGE), {})
    if not isinstance(images, torch.Tensor) or images.ndim not in (4, 5):
        what = f"shape {tuple(images.shape)}" if isinstance(images, torch.Tensor) else type(images).__name__
        raise GrataError(
            f"item {index} must be a batch (B, C, H, W) or (B, C, D, H, W), a tensor or a mapping with one "
            f"under {IMAGE!r}, got {what}.",
            key="images",
        )
    return images, sites, meta
