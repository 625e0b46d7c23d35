"""Let nnU-Net plan, preprocess and train a small network; run as a program, because nnU-Net reads its environment.

Arguments: folder of the raw data, configurations separated by commas. The model folders are written below that folder.
"""

import json
import os
import sys
from pathlib import Path

FOLDS = ("0", "1")


def train(root: Path, configurations: list[str]) -> None:
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(root / name)
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f"}

    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
    from nnunetv2.run.run_training import get_trainer_from_args

    torch.set_num_threads(1)
    extract_fingerprints([1], num_processes=1, verbose=False)
    plan_experiments([1])
    folder = root / "preprocessed" / "Dataset001_Tiny"
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    for name in configurations:
        _shrink(plans["configurations"][name])
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    preprocess([1], configurations=configurations, num_processes=[1] * len(configurations), verbose=False)

    cases = sorted({path.name[:-12] for path in (root / "raw" / "Dataset001_Tiny" / "imagesTr").iterdir()})
    (folder / "splits_final.json").write_text(json.dumps([{"train": cases[:-1], "val": cases[-1:]}] * len(FOLDS)))
    # No worker processes in training; planning refuses 0.
    os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112 (nnU-Net's own spelling)
    for configuration in configurations:
        for fold in FOLDS:
            torch.manual_seed(int(fold))
            trainer = get_trainer_from_args("1", configuration, int(fold), device=torch.device("cpu"))
            trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 2, 1
            trainer.run_training()


def _shrink(configuration: dict) -> None:
    """Make the network narrow and its patch smaller than the images, so that there are several windows."""
    configuration |= {"patch_size": [16] * len(configuration["patch_size"]), "batch_size": 2}
    architecture = configuration["architecture"]["arch_kwargs"]
    for key in ("kernel_sizes", "strides", "n_conv_per_stage"):
        architecture[key] = architecture[key][:3]
    architecture |= {"n_stages": 3, "features_per_stage": [4, 8, 8], "n_conv_per_stage_decoder": [1, 1]}
    architecture["n_conv_per_stage"] = [1, 1, 1]
    architecture["strides"] = [[1] * len(s) if i == 0 else [2] * len(s) for i, s in enumerate(architecture["strides"])]


if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[2].split(","))
