import subprocess

import numpy as np
import pytest
import torch

from grata.bundles.bundle import Bundle
from grata.errors import GrataError
from grata.methods import Prepared
from grata.networks import AuxiliaryHeads
from grata.normalization import BatchStatistics, collect_affine_parameters
from grata.preparation import prepare
from grata.preparation.fisher import pseudo_label_loss


def result(bundle):
    return Prepared.load(bundle / "models" / "prepared.safetensors")


def test_everything_of_a_small_source_set(config, write_bundle, make_source, capsys):
    bundle = write_bundle(config)
    source, labels = make_source()
    state = torch.get_rng_state()
    assert prepare(bundle, source, epochs=2) == 0
    assert torch.equal(torch.get_rng_state(), state)
    out = capsys.readouterr().out
    assert "Prepared from 6 of 6 images" in out and "rotation head: loss" in out

    prepared = result(bundle)
    disc, cup = (np.mean([(label >= value).mean() for label in labels]) for value in (1, 2))
    torch.testing.assert_close(prepared.class_sizes, torch.tensor([disc, cup]).float())
    assert prepared.centroid.shape == prepared.spread.shape == (2, 2)
    assert (prepared.images, prepared.network) == (6, "UNet")
    assert 0 <= prepared.results["rotation"]["accuracy"] <= 1
    opened = Bundle(bundle, {"dataset_dir": str(source)}, "test")
    network = opened.make_network().eval()
    prepared.check_network(network)
    heads = AuxiliaryHeads.load(network, prepared.heads)
    assert heads.branch("rotation", torch.rand(1, 1, 16, 16)).shape == (1, 6)

    BatchStatistics(network, 1.0).attach()
    parameters = collect_affine_parameters(network)
    expected = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for case in opened.cases(None):
        x = opened.read_image(case)["image"].as_tensor()[None]
        network.zero_grad()
        pseudo_label_loss(network(x), "sigmoid").backward()
        for name, parameter in parameters.items():
            expected[name] += parameter.grad**2 / 6
    assert prepared.fisher.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(prepared.fisher[name], value)


def test_a_file_that_is_there_is_kept_where_that_is_asked_for(config, write_bundle, make_source, capsys):
    bundle = write_bundle(config)
    source, _ = make_source(2)
    assert prepare(bundle, source, heads=None) == 0
    before = (bundle / "models" / "prepared.safetensors").read_bytes()
    with pytest.raises(GrataError, match="exists. Add --overwrite true"):
        prepare(bundle, source, images=1, heads=None, overwrite=False)
    assert (bundle / "models" / "prepared.safetensors").read_bytes() == before
    assert "is replaced" not in capsys.readouterr().err
    assert prepare(bundle, source, images=1, heads=None, overwrite=True) == 0
    assert "is replaced" not in capsys.readouterr().err
    assert prepare(bundle, source, heads=None) == 0
    assert "is replaced. From the next release on this needs --overwrite true" in capsys.readouterr().err
    assert (bundle / "models" / "prepared.safetensors").read_bytes() == before


def test_statistics_of_the_images_are_those_of_each_layer_under_the_sources_own(config, write_bundle, make_source):
    bundle, (source, _) = write_bundle(config), make_source()
    prepare(bundle, source, heads="none")
    found = result(bundle).image_statistics
    opened = Bundle(bundle, {"dataset_dir": str(source)}, "test")
    network, seen = opened.make_network().eval(), []
    layer = next(module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d))
    name = next(name for name, module in network.named_modules() if module is layer)
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0].flatten(1)))
    with torch.no_grad():
        for case in opened.cases(None):
            network(opened.read_image(case)["image"].as_tensor()[None])
    means = torch.stack([x.mean(1) for x in seen])
    logs = torch.stack([torch.log(x.var(1, correction=0) + layer.eps) for x in seen])
    expected = {"mean": means.mean(0), "mean_sd": means.std(0), "log_variance": logs.mean(0)}
    expected["log_variance_sd"] = logs.std(0)
    for part, values in expected.items():
        assert torch.allclose(found[f"{name}.{part}"], values, atol=1e-5), part


def test_heads_of_the_present_file_can_be_kept(config, write_bundle, make_source):
    bundle, (source, _) = write_bundle(config), make_source()
    prepare(bundle, source, epochs=1)
    first = result(bundle)
    prepare(bundle, source, heads="keep", overwrite=True)
    again = result(bundle)
    assert again.heads.names == first.heads.names and again.results == first.results
    assert all(torch.equal(value, again.heads.state[name]) for name, value in first.heads.state.items())
    assert torch.equal(first.class_sizes, again.class_sizes) and again.image_statistics.keys()
    prepare(bundle, source, heads="none", overwrite=True)
    assert result(bundle).heads is None


def test_a_head_that_learned_nothing_is_named(config, write_bundle, make_source, monkeypatch, capsys):
    bundle = write_bundle(config)
    source, _ = make_source(2)
    monkeypatch.setattr("grata.preparation.training._LEARNING_RATE", 0.0)
    assert prepare(bundle, source, epochs=1) == 0
    assert "The rotation head has learned nothing" in capsys.readouterr().out


def test_heads_learn_and_a_seed_repeats_them(config, write_bundle, make_source):
    bundle = write_bundle(config)
    source, _ = make_source()
    prepare(bundle, source, epochs=30, output="a.safetensors")
    prepare(bundle, source, epochs=30, output="b.safetensors")
    prepare(bundle, source, epochs=30, output="c.safetensors", seed=1, heads="rotation")
    a, b, c = (Prepared.load(bundle / f"{name}.safetensors") for name in "abc")
    assert a.results["denoising"]["last_loss"] < a.results["denoising"]["first_loss"]
    assert a.results == b.results and a.results["rotation"] != c.results["rotation"]
    assert all(torch.equal(value, b.heads.state[name]) for name, value in a.heads.state.items())
    assert c.heads.names == ("rotation",)


def test_one_bad_scan_is_reported_and_the_others_are_used(config, write_bundle, make_source, capsys):
    bundle = write_bundle(config)
    source, _ = make_source(4)
    scan, header = source / "images" / "case1.nii.gz", source / "images" / "case2.nii.gz"
    scan.write_bytes(scan.read_bytes()[:-40])
    header.write_bytes(b"")
    assert prepare(bundle, source, heads=None) == 1
    out = capsys.readouterr().out
    assert "Prepared from 2 of 4 images" in out and "case1: " in out and "case2: " in out
    assert str(source) not in out.replace(str(bundle), "")
    assert result(bundle).images == 2


def test_no_usable_scan_is_an_error(config, write_bundle, make_source):
    bundle = write_bundle(config)
    source, _ = make_source(1)
    (source / "images" / "case0.nii.gz").write_bytes(b"")
    with pytest.raises(GrataError, match="none of the 1 images could be used. The first: case0"):
        prepare(bundle, source)
    assert not (bundle / "models" / "prepared.safetensors").exists()


def test_without_labels_the_rest_is_prepared(config, write_bundle, make_source, capsys):
    bundle = write_bundle(config)
    source, _ = make_source(3, labelled=False)
    assert prepare(bundle, source, epochs=1) == 0
    assert "no image has a label" in capsys.readouterr().out
    prepared = result(bundle)
    assert prepared.class_sizes is prepared.centroid is None and prepared.fisher and prepared.heads


def test_some_labels_give_sizes_of_those(config, write_bundle, make_source, capsys):
    bundle = write_bundle(config)
    source, labels = make_source(3)
    (source / "labels" / "case0.nii.gz").unlink()
    assert prepare(bundle, source, heads="none") == 0
    assert "1 images have no label" in capsys.readouterr().out
    assert result(bundle).class_sizes[0].item() == pytest.approx(np.mean([(label > 0).mean() for label in labels[1:]]))
    assert result(bundle).heads is None


def test_windows_of_volumes(config, write_bundle, make_source):
    config["activation"] = "softmax"
    config["network_def"] |= {"spatial_dims": 3, "out_channels": 3}
    config["discovery"]["spatial_dims"] = 3
    config["inferer"] = {"_target_": "SlidingWindowInferer", "roi_size": [8, 8, 12], "padding_mode": "replicate"}
    bundle = write_bundle(config)
    source, labels = make_source(3, (8, 16, 8))
    assert prepare(bundle, source, epochs=1) == 0
    prepared = result(bundle)
    shares = []
    for label in labels:
        windows = sorted((label[:, a : a + 8] for a in (0, 6, 8)), key=lambda w: -(w > 0).sum())[:2]
        shares.append(np.mean([(window == 2).sum() / (8 * 8 * 12) for window in windows]))
    assert prepared.class_sizes.sum().item() == pytest.approx(1)
    assert prepared.class_sizes[2].item() == pytest.approx(np.mean(shares))
    assert prepared.heads.views == ("identity", "flip_w", "flip_h", "flip_d", "rot180")
    labelled = result(bundle)
    for case in range(3):
        (source / "labels" / f"case{case}.nii.gz").unlink()
    assert prepare(bundle, source, heads=None) == 0
    assert result(bundle).fisher.keys() == labelled.fisher.keys()


def test_held_out_cases_and_a_number_of_images(config, write_bundle, make_source):
    bundle = write_bundle(config)
    source, labels = make_source(8)
    for options, used in (
        ({"val_stride": 3}, [1, 2, 4, 5, 7]),
        ({"images": 2}, [2, 6]),
        ({"val_stride": 2, "images": 3}, [1, 5, 7]),
    ):
        assert prepare(bundle, source, heads=None, **options) == 0
        assert result(bundle).images == len(used)
        share = np.mean([(labels[i] > 0).mean() for i in used])
        assert result(bundle).class_sizes[0].item() == pytest.approx(share), options


def test_without_a_key_of_its_own_the_activation_of_the_method_is_used(config, write_bundle, make_source):
    del config["activation"]
    config |= {"grata": {"activation": "sigmoid"}, "settings": "@grata"}
    bundle = write_bundle(config)
    assert prepare(bundle, make_source(2)[0], heads=None) == 0
    with pytest.raises(GrataError, match="activation: must be sigmoid or softmax, got 'relu'"):
        prepare(bundle, make_source(2)[0], **{"grata#activation": "relu"})


def test_a_network_without_affine_parameters_has_no_fisher_information(config, write_bundle, make_source, capsys):
    config["network_def"]["norm"] = "instance"
    bundle = write_bundle(config)
    assert prepare(bundle, make_source(2)[0], epochs=1) == 0
    assert "Fisher information left out" in capsys.readouterr().out
    assert not result(bundle).fisher and result(bundle).heads


def test_a_scripted_network_has_all_but_heads(config, write_bundle, make_source, capsys):
    bundle = write_bundle(config)
    source, _ = make_source(2)
    assert prepare(bundle, source, heads=None, output="python.safetensors") == 0
    network = Bundle(bundle, {}, "test").make_network().eval()
    torch.jit.script(network).save(bundle / "models" / "model.ts")
    assert prepare(bundle, source, weights=str(bundle / "models" / "model.ts")) == 0
    assert "Heads left out: A TorchScript network" in capsys.readouterr().out
    python, scripted = Prepared.load(bundle / "python.safetensors"), result(bundle)
    assert scripted.heads is None and scripted.digest == python.digest and scripted.network == "UNet"
    for name, value in python.fisher.items():
        torch.testing.assert_close(scripted.fisher[name], value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"heads": "colour"}, "heads: there is no head 'colour'"),
        ({"heads": 3}, "heads: must be rotation, denoising or none, got 3"),
        ({"epochs": 0}, "epochs: must be a whole number of at least 1"),
        ({"images": "few"}, "images: must be a whole number"),
        ({"val_stride": 1}, "val_stride: 1 leaves no image"),
        ({"network_deff#depth": 1}, "network_deff"),
        ({"epoch": 3}, "^--epoch: there is no such key.* Did you mean --epochs"),
    ],
)
def test_wrong_options_are_refused(config, write_bundle, make_source, options, message):
    with pytest.raises(GrataError, match=message):
        prepare(write_bundle(config), make_source(2)[0], **options)


def test_images_of_several_shapes_share_the_views_that_suit_all(config, write_bundle, make_source, tmp_path):
    bundle = write_bundle(config)
    source, _ = make_source(2)
    wide, _ = make_source(2, (16, 24), name="wide")
    for kind in ("images", "labels"):
        for index in range(2):
            (wide / kind / f"case{index}.nii.gz").rename(source / kind / f"wide{index}.nii.gz")
    assert prepare(bundle, source, epochs=2) == 0
    assert result(bundle).heads.views == ("identity", "flip_w", "flip_h", "rot180")


def test_the_command_as_a_user_types_it(python, config, write_bundle, make_source):
    bundle = write_bundle(config)
    source, _ = make_source(2)

    def run(*arguments):
        command = [python, "-m", "grata", "prepare", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=200, check=False)

    outcome = run(bundle, "--dataset_dir", source, "--heads", "rotation,denoising", "--epochs", 1)
    assert outcome.returncode == 0, outcome.stderr
    assert "Prepared from 2 of 2 images" in outcome.stdout
    assert result(bundle).heads.names == ("rotation", "denoising")
    outcome = run(bundle, "--dataset_dir", bundle / "nowhere")
    assert outcome.returncode == 1 and "Traceback" not in outcome.stderr
    assert outcome.stderr.startswith("error: ") and "does not exist" in outcome.stderr
