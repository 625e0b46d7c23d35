"""Make the sample scans of the hippocampus bundle from the ICBM152 T1 template.

The template is part of the `nilearn` package (`pip install nilearn`), or is given with `--template`. Both hippocampus
regions are cut as tightly as the bundle's training images. Both are written as NIfTI, and the right one also as a DICOM
MR series of coronal slices with an invented patient. The same template gives the same bytes.

    python scripts/make_sample_scans.py --output_dir bundles/hippocampus_mri_segmentation/sample_scans
"""

import argparse
import importlib.util
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from mr_image import mr_image
from pydicom.uid import generate_uid

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "hippocampus_mri_segmentation"
TEMPLATE = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
# First and last voxel centre in mm of the template's RAS space, along x, y and z.
BOXES = {"left": ((-42, -8), (-48, 2), (-31, 6)), "right": ((8, 42), (-48, 2), (-31, 6))}
LICENSE = """\
The scans in this folder are parts of the ICBM 152 nonlinear symmetric 2009a T1 template, as distributed with nilearn.

Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill
University.

Permission to use, copy, modify, and distribute this software and its documentation for any purpose and without fee is
hereby granted, provided that the above copyright notice appear in all copies. The authors and McGill University make
no representations about the suitability of this software for any purpose. It is provided "as is" without express or
implied warranty. The authors are not responsible for any data loss, equipment damage, property loss, or injury to
subjects or patients resulting from the use or misuse of this software package.

Reference: VS Fonov, AC Evans, K Botteron, CR Almli, RC McKinstry, DL Collins and BDCG, Unbiased average
age-appropriate atlases for pediatric studies, NeuroImage 54 (2011).

Changes: both hippocampus regions were cut out (scripts/make_sample_scans.py). The patient in the DICOM files is
invented.
"""


def find_template() -> Path:
    """Return the template inside the installed nilearn package."""
    package = importlib.util.find_spec("nilearn")
    if package is None or package.origin is None:
        raise SystemExit("nilearn is not installed. Run `pip install nilearn`, or give the file with --template.")
    return Path(package.origin).parent / TEMPLATE


def cut(template: nibabel.Nifti1Image, box: tuple[tuple[int, int], ...]) -> nibabel.Nifti1Image:
    """Return a box of the template; the voxels keep their place in space.

    Args:
        template: template in RAS order.
        box: first and last voxel centre along each axis, in mm.
    """
    corners = np.asarray([[first for first, _ in box], [last for _, last in box]])
    first, last = np.rint(nibabel.affines.apply_affine(np.linalg.inv(template.affine), corners)).astype(int)
    return template.slicer[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))]


def save_nifti(region: nibabel.Nifti1Image, path: Path) -> None:
    """Write a region as NIfTI, with its geometry and nothing else in the header."""
    image = nibabel.Nifti1Image(np.asarray(region.dataobj, dtype=np.uint8), region.affine)
    # Code 4: coordinates of the MNI 152 space.
    image.set_sform(region.affine, code=4)
    image.set_qform(region.affine, code=4)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def save_dicom(region: nibabel.Nifti1Image, folder: Path) -> None:
    """Write a region as a series of coronal MR images, one file per slice, from posterior to anterior."""
    voxels = np.asarray(region.dataobj, dtype=np.uint16)
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ region.affine
    right, top = voxels.shape[0] - 1, voxels.shape[2] - 1
    for index in range(voxels.shape[1]):
        # Radiological view: rows run to the patient's left, columns to the feet.
        pixels = np.ascontiguousarray(voxels[::-1, index, ::-1].T)
        position = (to_lps @ [right, index, top, 1])[:3]
        slice_file = mr_slice(pixels, position, index, voxels)
        slice_file.save_as(folder / f"{index + 1:03d}.dcm", enforce_file_format=True)


def mr_slice(pixels: np.ndarray, position: np.ndarray, index: int, voxels: np.ndarray) -> pydicom.Dataset:
    """Return one coronal slice of the template as an MR image of an invented patient."""
    return mr_image(
        pixels,
        int(voxels.max()),
        SOPInstanceUID=uid("instance", str(index)),
        StudyInstanceUID=uid("study"),
        SeriesInstanceUID=uid("series"),
        FrameOfReferenceUID=uid("frame of reference"),
        PatientName="Template^ICBM152",
        PatientID="ICBM152",
        **dict.fromkeys(("StudyDate", "SeriesDate", "ContentDate"), "20090101"),
        **dict.fromkeys(("StudyTime", "SeriesTime", "ContentTime"), "120000"),
        InstanceNumber=index + 1,
        SeriesDescription="T1 template right hippocampus COR",
        BodyPartExamined="BRAIN",
        Laterality="R",
        Manufacturer="McConnell Brain Imaging Centre",
        ImageType=["DERIVED", "SECONDARY", "OTHER"],
        ScanningSequence="RM",
        SequenceVariant="NONE",
        ScanOptions="",
        MRAcquisitionType="3D",
        **dict.fromkeys(("EchoTime", "EchoTrainLength", "RepetitionTime"), ""),
        PixelSpacing=[1, 1],
        SliceThickness=1,
        SpacingBetweenSlices=1,
        ImageOrientationPatient=[1, 0, 0, 0, 0, -1],
        ImagePositionPatient=[float(value) for value in position],
    )


def uid(*names: str) -> str:
    """Return a UID that is the same in every run."""
    return generate_uid(entropy_srcs=["ICBM152 T1 2009a", "right hippocampus", *names])


def main() -> None:
    """Parse the command line and write the scans."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", type=Path, help="file of the template; default: the one inside nilearn")
    parser.add_argument("--output_dir", type=Path, default=BUNDLE / "sample_scans")
    arguments = parser.parse_args()
    template = nibabel.as_closest_canonical(nibabel.load(arguments.template or find_template()))
    nifti, dicom = arguments.output_dir / "nifti", arguments.output_dir / "dicom" / "right"
    nifti.mkdir(parents=True, exist_ok=True)
    dicom.mkdir(parents=True, exist_ok=True)
    for side, box in BOXES.items():
        save_nifti(cut(template, box), nifti / f"icbm152_{side}.nii.gz")
    save_dicom(cut(template, BOXES["right"]), dicom)
    (arguments.output_dir / "LICENSE-ICBM152.txt").write_text(LICENSE, encoding="utf-8")


if __name__ == "__main__":
    main()
