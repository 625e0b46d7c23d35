"""The bundles for pictures, of the eye and of the colon, through MONAI's own command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from grata.benchmark import run_benchmark
from grata.methods import GraTa
from grata.networks import EfficientUNet, ResUNet, load_source

BUNDLES = Path(__file__).parents[2] / "bundles"
DISC, VESSEL = "fundus_optic_disc_cup_segmentation", "retinal_vessel_segmentation"
POLYP = "polyp_endoscopy_segmentation"
VALUES = {DISC: {0, 1, 2}, VESSEL: {0, 1}, POLYP: {0, 1}}
# Where a test does not ask how good a prediction is, the network is given small pictures: a fifth of the time.
SMALL = {DISC: {"image_size": [192, 192]}, VESSEL: {"field_of_view": 20}, POLYP: {"image_size": [192, 192]}}


def small(fundus):
    """Return the options that have a bundle resize pictures to a small size."""
    return [text for key, value in SMALL[fundus.name].items() for text in (f"--{key}", json.dumps(value))]


def journal(folder):
    return [json.loads(line) for line in (Path(folder) / "journal.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module", params=[DISC, VESSEL, POLYP])
def fundus(request):
    return BUNDLES / request.param


@pytest.fixture(scope="module")
def adapted(adapt, fundus, tmp_path_factory):
    """The sample pictures, adapted with another working directory than the bundle."""
    folder = tmp_path_factory.mktemp("anywhere")
    return folder / "output", adapt(fundus, folder / "output", *small(fundus), cwd=folder)


@pytest.fixture(scope="module")
def dataset(fundus, tmp_path_factory):
    """The sample pictures in four formats, one of them small, with a disc and a cup or only a disc as the label."""
    folder = tmp_path_factory.mktemp("dataset")
    for name in ("images", "labels"):
        (folder / name).mkdir()
    samples = sorted((fundus / "sample_scans").glob("*.jpg"))
    for i, suffix in enumerate((".png", ".jpg", ".tif", ".bmp")):
        picture = Image.open(samples[i % 2])
        if i == 2:
            picture = picture.resize((200, 170))
        picture.save(folder / "images" / f"eye_{i}{suffix}")
        y, x = np.mgrid[-1 : 1 : picture.height * 1j, -1 : 1 : picture.width * 1j]
        label = (np.hypot(x, y) < 0.5).astype(np.uint8)
        if fundus.name == DISC:
            label += np.hypot(x, y) < 0.3
        Image.fromarray(label).save(folder / "labels" / f"eye_{i}.png")
    return folder


def test_the_sample_pictures_end_as_segmentations_and_figures(adapted, fundus):
    output, result = adapted
    assert "2 of 2 cases finished" in result.stdout
    for line in journal(output):
        assert line["flags"] == [] and 0 < line["agreement"] <= 1 and line["parameter_change"]["l2"] > 0
        with Image.open(output / "segmentations" / f"{line['case']}.png") as segmentation:
            labels = np.asarray(segmentation)
            assert segmentation.size == Image.open(fundus / "sample_scans" / f"{line['case']}.jpg").size
        assert {1} < set(np.unique(labels)) <= VALUES[fundus.name]
        assert (output / "figures" / f"{line['case']}.png").stat().st_size > 10_000


def test_a_users_folder_of_pictures_of_all_formats_is_scored_and_a_bad_one_reported(adapt, fundus, dataset, tmp_path):
    (dataset / "images" / "broken.png").write_bytes(b"no picture")
    try:
        result = adapt(
            fundus,
            tmp_path / "output",
            "--dataset_dir",
            dataset,
            "--site",
            "B",
            "--method",
            "tent",
            *small(fundus),
            cwd=tmp_path,
            check=False,
        )
    finally:
        (dataset / "images" / "broken.png").unlink()
    assert result.returncode == 1
    assert "4 of 5 cases finished" in result.stdout and "broken" in result.stdout
    rows = (tmp_path / "output" / "scores.csv").read_text().splitlines()
    classes = len(VALUES[fundus.name]) - 1
    assert len(rows) == 1 + 4 * 2 * classes and all(row.endswith(",px") for row in rows[1:])
    for i, suffix in enumerate((".png", ".jpg", ".tif", ".bmp")):
        size = Image.open(dataset / "images" / f"eye_{i}{suffix}").size
        assert Image.open(tmp_path / "output" / "segmentations" / f"eye_{i}.png").size == size


def test_metadata_network_and_workflows_are_those_of_a_zoo_bundle(check_zoo_bundle, fundus):
    check_zoo_bundle(fundus, keep_pages=False)


# the two slowest tests, each for one of the bundles
@pytest.mark.parametrize("fundus", [DISC], indirect=True)
def test_the_exported_network_can_be_adapted_as_well(run, adapt, fundus, adapted, tmp_path):
    run(
        *("ckpt_export", "--net_id", "network_def", "--filepath", tmp_path / "model.ts"),
        *("--ckpt_file", fundus / "models" / "model.pt", "--meta_file", fundus / "configs" / "metadata.json"),
        *("--config_file", fundus / "configs" / "inference.json", "--input_shape", "[1,3,128,128]"),
        cwd=tmp_path,
    )
    adapt(fundus, tmp_path / "output", "--weights", tmp_path / "model.ts", *small(fundus), cwd=tmp_path)
    for path in (tmp_path / "output" / "segmentations").iterdir():
        twin = adapted[0] / "segmentations" / path.name
        assert (np.asarray(Image.open(path)) == np.asarray(Image.open(twin))).mean() > 0.998
    scripted = torch.jit.load(tmp_path / "model.ts")
    assert len(GraTa(scripted, activation="sigmoid").parameters) > 0


@pytest.mark.parametrize("fundus", [VESSEL], indirect=True)
def test_the_overlay_on_plain_inference_predicts_as_adapt_does(with_overlay, adapted, fundus, tmp_path):
    with_overlay(fundus, tmp_path / "output", *small(fundus), cwd=tmp_path)
    own, _ = adapted
    for sample in ("phantom_camera_a", "phantom_camera_b"):
        expected = np.asarray(Image.open(own / "segmentations" / f"{sample}.png"))
        assert expected.any()
        assert np.array_equal(np.asarray(Image.open(tmp_path / "output" / f"{sample}_seg.png")), expected)


def test_plain_inference_and_evaluation(run, fundus, adapted, dataset, tmp_path):
    files = fundus / "configs" / "inference.json", fundus / "configs" / "evaluate.json"
    common = ["--bundle_root", fundus, "--output_dir", tmp_path / "eval"]
    run("run", "--config_file", files[0], *common, cwd=tmp_path)
    predictions = sorted((tmp_path / "eval").glob("*_seg.png"))
    assert len(predictions) == 2
    assert {1} < set(np.unique(np.asarray(Image.open(predictions[0])))) <= VALUES[fundus.name]
    both = str([str(file) for file in files])
    if fundus.name != DISC:
        # the folder of labels has two names
        shutil.copytree(dataset / "images", tmp_path / "dataset" / "images")
        shutil.copytree(dataset / "labels", tmp_path / "dataset" / "masks")
        dataset = tmp_path / "dataset"
    run("run", "evaluating", "--config_file", both, *common, "--dataset_dir", dataset, cwd=tmp_path)
    assert "val_mean_dice" in (tmp_path / "eval" / "metrics.csv").read_text()


def test_training_runs_from_the_bundles_own_workflow(run, fundus, dataset, tmp_path):
    of_vessels = ["--crop_size", "[64,64]", "--pixels_per_degree", 4]
    small = of_vessels if fundus.name == VESSEL else ["--image_size", "[64,64]"]
    arguments = ["--max_epochs", 1, "--val_interval", 1, "--batch_size", 2, "--val_stride", 2, *small]
    command = ["--bundle_root", fundus, "--dataset_dir", dataset, "--ckpt_dir", tmp_path, *arguments]
    run("run", "training", "--config_file", fundus / "configs" / "train.yaml", *command, cwd=tmp_path)
    name = "segmentation.pt" if fundus.name == DISC else "model.pt"
    trained = torch.load(tmp_path / name, weights_only=True)
    shipped = torch.load(fundus / "models" / "model.pt", weights_only=True)
    assert {k: v.shape for k, v in trained.items()} == {k: v.shape for k, v in shipped.items()}
    strong = fundus / "configs" / "train_strong.yaml"
    if strong.is_file():
        run(
            "run",
            "training",
            "--config_file",
            str([str(strong.with_name("train.yaml")), str(strong)]),
            *command,
            cwd=tmp_path,
        )
        assert torch.load(tmp_path / "model_strong.pt", weights_only=True).keys() == trained.keys()
    if fundus.name == DISC:
        overlay = str([str(fundus / "configs" / name) for name in ("train.yaml", "train_branches.yaml")])
        run("run", "training", "--config_file", overlay, *command, cwd=tmp_path)
        joint = torch.load(tmp_path / "joint.pt", weights_only=True)
        branches = torch.load(fundus / "models" / "branches.pt", weights_only=True)
        assert {k: v.shape for k, v in joint.items()} == {k: v.shape for k, v in {**shipped, **branches}.items()}
        # branches are learnt on a segmentation that stays as it is
        assert all(torch.equal(value, joint[key]) for key, value in trained.items() if "num_batches" not in key)


def test_the_bundle_can_be_benchmarked(fundus, dataset, tmp_path):
    config = {
        "bundle": str(fundus),
        "output_dir": str(tmp_path / "results"),
        "sources": {"bundle": {"keep_pages": False, "guard": False, **SMALL[fundus.name]}},
        "targets": {"phantoms": {"dataset_dir": str(dataset)}},
        "methods": {"source": {}, "ptbn": {}},
        "reference_method": "ptbn",
        "limit": 2,
        "workers": 0,
    }
    (tmp_path / "benchmark.yaml").write_text(json.dumps(config))
    assert run_benchmark(tmp_path / "benchmark.yaml") == 0
    assert len((tmp_path / "results" / "results.csv").read_text().splitlines()) == 1 + 2 * 2
    assert list((tmp_path / "results" / "figures").glob("*.png"))


@pytest.fixture(scope="module")
def with_branches():
    parser = ConfigParser()
    parser.read_config(str(BUNDLES / DISC / "configs" / "adapt.yaml"))
    models = BUNDLES / DISC / "models"
    parser["network_def#branches"] = ["reconstruction", "rotation", "denoising", "super_resolution"]
    parser["weights"] = [str(models / "model.pt"), str(models / "branches.pt")]
    return parser.get_parsed_content("network").eval()


def test_branches_are_shipped_beside_the_segmentation(with_branches):
    x = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        assert with_branches.branch("super_resolution", x[..., :64, :64]).shape == (1, 3, 128, 128)
        shipped = load_source(EfficientUNet(out_channels=2), BUNDLES / DISC / "models" / "model.pt", "cpu").eval()
        torch.testing.assert_close(shipped(x), with_branches(x), rtol=1e-4, atol=1e-4)


def test_the_network_of_the_paper_takes_the_place_of_the_bundles(adapt, tmp_path):
    torch.save(ResUNet(out_channels=2, depth=18).state_dict(), tmp_path / "own.pt")
    network = "{'_target_': 'grata.networks.ResUNet', 'in_channels': 3, 'out_channels': 2, 'depth': 18}"
    own = ["--network_def", network, "--weights", tmp_path / "own.pt", "--prepared", "null", "--quality", "null"]
    result = adapt(BUNDLES / DISC, tmp_path / "output", *own, *small(BUNDLES / DISC), cwd=tmp_path)
    assert "2 of 2 cases finished" in result.stdout


def test_the_benchmarks_own_layout_of_masks_and_lists(adapt, tmp_path):
    bundle, site = BUNDLES / DISC, tmp_path / "data" / "Drishti_GS"
    for name in ("image", "mask"):
        (site / name).mkdir(parents=True)
    rows = ["image,mask"]
    for path in sorted((bundle / "sample_scans").glob("*.jpg")):
        picture = Image.open(path)
        picture.save(site / "image" / f"{path.stem}.png")
        mask = np.full((picture.height, picture.width), 255, np.uint8)
        mask[100:300, 100:300], mask[150:250, 150:250] = 128, 0
        Image.fromarray(mask).save(site / "mask" / f"{path.stem}.png")
        rows.append(f"Drishti_GS/image/{path.stem}.png,Drishti_GS/mask/{path.stem}.png")
    (tmp_path / "data" / "Drishti_GS_test.csv").write_text("\n".join(rows))
    common = [*small(bundle), "--benchmark_masks", "true", "--method", "source", "--dataset_dir"]
    adapt(bundle, tmp_path / "a", *common, tmp_path / "data", "--cases_file", "Drishti_GS_test.csv", cwd=tmp_path)
    adapt(bundle, tmp_path / "b", *common, site, cwd=tmp_path)
    scores = (tmp_path / "a" / "scores.csv").read_text()
    assert scores == (tmp_path / "b" / "scores.csv").read_text()
    assert "Optic disc" in scores and "Optic cup" in scores and len(scores.splitlines()) == 1 + 2 * 2
