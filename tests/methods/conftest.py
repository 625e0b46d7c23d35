"""What the tests of methods share."""

import nibabel
import pytest
import torch
from torch.nn import functional as F


@pytest.fixture(scope="session")
def real_scan(bundle) -> torch.Tensor:
    """A scan ``(1, 1, 16, 16, 16)`` in 0..1: the middle of an MRI, at a fraction of its resolution."""
    path = bundle / "sample_scans" / "nifti" / "icbm152_left.nii.gz"
    volume = torch.from_numpy(nibabel.load(path).get_fdata(dtype="float32"))[None, None]
    volume = F.interpolate(volume, (16, 16, 16), mode="trilinear")
    return (volume - volume.min()) / (volume.max() - volume.min())
