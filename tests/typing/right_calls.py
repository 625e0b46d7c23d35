"""Right uses of the public names: a type checker finds no error here. Nothing here is run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import grata
from grata import AdaptedStream, AdapterBank, GradientRecord, GrataError, Method, WindowSelection
from grata.methods import METHODS, GraTa, Tent, create


def adapted(network: nn.Module, images: list[torch.Tensor]) -> list[torch.Tensor]:
    stream: AdaptedStream = grata.adapt(network, images, method="grata", activation="softmax", settings={"lr": 1e-3})
    probabilities = [item.probabilities for item in stream]
    stream.method.restore()
    return probabilities


def chosen(network: nn.Module, name: str) -> Method:
    kind: type[Method] = METHODS[name]
    assert kind.card.forwards >= 1
    return create(name, network, {"lr": 1e-3}, activation="sigmoid")


def stepped(network: nn.Module, images: torch.Tensor) -> float:
    method = GraTa(network, activation="sigmoid", lr=1e-4, rho=0.5, auxiliary="entropy", seed=3)
    record: GradientRecord = method.adapt(images)
    tent = grata.Tent(network, activation="softmax", optimizer="SGD", optimizer_options={"momentum": 0.9})
    also: Tent = tent
    loss = also.adapt(images).loss
    also.restore()
    return record.cosine + record.learning_rate + loss


def kept(folder: Path) -> dict[str, int]:
    bank = AdapterBank(folder, tags=["Manufacturer"])
    return {entry: bank.read(entry).cases for entry in bank.entries()}


def judged(network: nn.Module, images: list[torch.Tensor]) -> list[str]:
    own = grata.adapt(network, images, "tent", activation="softmax", guard={"on_reject": "withhold", "patience": 2})
    plain = grata.adapt(network, images, "tent", activation="softmax", guard=False)
    return [reason for item in (*own, *plain) for judgement in item.judgements for reason in judgement.reasons]


def handled(method: Method) -> grata.AdaptationHandler:
    return grata.AdaptationHandler(method, windows=WindowSelection(uncertain=2, random=2), guard=True)


def failed() -> str:
    try:
        return str(grata.overlay())
    except GrataError as error:
        return f"{error.key} {error.message} {error.under('settings')}"


def benchmarked() -> int:
    return grata.run_benchmark("benchmark.yaml", limit=1) + len(grata.__version__)


def loaded(path: Path) -> grata.Prepared:
    return grata.Prepared.load(path)
