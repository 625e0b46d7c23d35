"""The second source networks of the bundles, trained with strong augmentation."""

from pathlib import Path

import pytest
import torch

from grata.bundles.bundle import Bundle
from grata.methods import create
from grata.networks import network_digest
from grata.quality import Calibration

BUNDLES = sorted(path.parents[1] for path in Path(__file__).parents[2].glob("bundles/*/configs/train_strong.yaml"))


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.name)
def test_source_training_selects_a_network_with_files_of_its_own(path):
    plain, strong = (Bundle(path, {"source_training": kind}, "test") for kind in ("plain", "strong"))
    networks = [bundle.make_network() for bundle in (plain, strong)]
    states = [network.state_dict() for network in networks]
    assert states[0].keys() == states[1].keys()
    assert any(not torch.equal(value, states[1][name]) for name, value in states[0].items())
    calibrations = [Calibration.read(bundle.value("quality")) for bundle in (plain, strong)]
    digests = [network_digest(network) for network in networks]
    assert [calibration.network for calibration in calibrations] == digests and digests[0] != digests[1]
    # whose heads fit the network
    for bundle, network in zip((plain, strong), networks, strict=True):
        create("ttt", network, {}, activation=bundle.activation, prepared=bundle.value("prepared"))
    assert plain.value("prepared") != strong.value("prepared")
