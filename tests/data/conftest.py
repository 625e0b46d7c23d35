"""Writers of synthetic scans in the forms of scanners and archives."""

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

ORIENTATIONS = {
    "axial": [1, 0, 0, 0, 1, 0],
    "sagittal": [0, 1, 0, 0, 0, -1],
    "coronal": [1, 0, 0, 0, 0, -1],
    # Turned by 20 degrees about the left-right axis and by 10 degrees about the head-foot axis.
    "oblique": [0.984807753, 0.173648178, 0, -0.163175911, 0.925416578, 0.342020143],
}
SPACING = (0.9, 1.1, 2.5)
ORIGIN = np.array([-30.0, -42.0, 17.0])
NAME = "Mustermann^Erika"


def slice_dataset(index: int, pixels: np.ndarray, orientation: str, series: str) -> pydicom.Dataset:
    """Return slice ``index`` of a series, MR Image Storage, (rows, columns)."""
    cosines = np.array(ORIENTATIONS[orientation], dtype=float)
    normal = np.cross(cosines[:3], cosines[3:])
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = MRImageStorage
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[series, str(index)])
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study"])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[series])
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame"])
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = NAME, "KH-4711", "19610824"
    dataset.PatientSex, dataset.AccessionNumber, dataset.ReferringPhysicianName = "F", "ACC998877", "Doktor^Eisenbart"
    dataset.StudyID, dataset.StudyDate, dataset.StudyTime = "1", "20170503", "101112"
    dataset.Modality, dataset.SeriesNumber, dataset.SeriesDescription = "MR", 7, "T1 MPRAGE post"
    dataset.Manufacturer, dataset.InstanceNumber = "Acme", index + 1
    dataset.PixelSpacing, dataset.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
    dataset.ImageOrientationPatient = ORIENTATIONS[orientation]
    dataset.ImagePositionPatient = [round(float(x), 6) for x in ORIGIN + index * SPACING[2] * normal]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelData = np.ascontiguousarray(pixels, dtype=np.uint16).tobytes()
    return dataset


def series_datasets(
    orientation: str = "axial", series: str = "one", slices: int = 6, size: tuple[int, int] = (8, 10)
) -> list[pydicom.Dataset]:
    """Return a good series; slice k holds ``voxels(slices, size)[k]``."""
    return [slice_dataset(k, pixels, orientation, series) for k, pixels in enumerate(voxels(slices, size))]


def voxels(slices: int = 6, size: tuple[int, int] = (8, 10)) -> np.ndarray:
    """Return the stored values of the synthetic series, (slices, rows, columns)."""
    return np.random.default_rng(3).integers(0, 1000, (slices, *size)).astype(np.uint16)


def save_all(datasets: list[pydicom.Dataset], folder: Path, shuffle: bool = True) -> list[Path]:
    """Write data sets under names in another order than the slices."""
    folder.mkdir(parents=True, exist_ok=True)
    names = np.random.default_rng(5).permutation(len(datasets)) if shuffle else np.arange(len(datasets))
    start = len(list(folder.iterdir()))
    paths = [folder / f"IM{start + name:04d}.dcm" for name in names]
    for dataset, path in zip(datasets, paths, strict=True):
        dataset.save_as(path, enforce_file_format=True)
    return paths


def enhanced_dataset(orientation: str = "axial", slices: int = 6) -> pydicom.Dataset:
    """Return an enhanced multi-frame MR whose frames are not in order and have different slopes.

    The frame of slice k holds ``voxels(slices)[k]`` and the rescale slope ``k + 1``.
    """
    order = np.random.default_rng(1).permutation(slices)
    singles = series_datasets(orientation, "enhanced", slices)
    dataset = series_datasets(orientation, "enhanced", 1)[0]
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        del dataset[keyword]
    dataset.SOPClassUID = EnhancedMRImageStorage
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=["enhanced"])
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "NONE"]
    dataset.ContentDate, dataset.ContentTime = "20170503", "101500"
    shared, orientation_item, measures = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    orientation_item.ImageOrientationPatient = ORIENTATIONS[orientation]
    measures.PixelSpacing, measures.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation_item], [measures]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for number, k in enumerate(order, 1):
        frame, content, position, values = (pydicom.Dataset() for _ in range(4))
        content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", int(k) + 1, [number]
        position.ImagePositionPatient = singles[k].ImagePositionPatient
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = int(k) + 1, 0, "US"
        frame.FrameContentSequence, frame.PlanePositionSequence = [content], [position]
        frame.PixelValueTransformationSequence = [values]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    organization, index = pydicom.Dataset(), pydicom.Dataset()
    organization.DimensionOrganizationUID = index.DimensionOrganizationUID = generate_uid(entropy_srcs=["dimension"])
    index.DimensionIndexPointer, index.FunctionalGroupPointer = 0x00209057, 0x00209111
    dataset.DimensionOrganizationSequence, dataset.DimensionIndexSequence = [organization], [index]
    dataset.NumberOfFrames = slices
    dataset.PixelData = np.ascontiguousarray(voxels(slices)[order]).tobytes()
    return dataset


def expected_affine(orientation: str) -> np.ndarray:
    """Return the RAS affine of (column, row, slice) indices, from DICOM's definition (PS3.3 C.7.6.2.1.1)."""
    cosines = np.array(ORIENTATIONS[orientation], dtype=float)
    row, column = cosines[:3], cosines[3:]
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = row * SPACING[0], column * SPACING[1]
    lps[:3, 2], lps[:3, 3] = np.cross(row, column) * SPACING[2], ORIGIN
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def save_nifti(path: Path, shape: tuple[int, ...] = (9, 8, 7), affine: np.ndarray | None = None) -> Path:
    """Write a NIfTI image of random values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    image = nibabel.Nifti1Image(values, np.diag([-1.0, 1.0, 2.0, 1.0]) if affine is None else affine)
    image.set_qform(image.affine, code=1)
    nibabel.save(image, path)
    return path


class Scans:
    """The writers above, for tests (in pytest's importlib mode, test files cannot import each other)."""

    orientations = tuple(ORIENTATIONS)
    patient = ("mustermann", "erika", "kh-4711", "19610824", "20170503", "eisenbart", "acc998877")
    series: Callable = staticmethod(series_datasets)
    enhanced: Callable = staticmethod(enhanced_dataset)
    voxels: Callable = staticmethod(voxels)
    save: Callable = staticmethod(save_all)
    affine: Callable = staticmethod(expected_affine)
    nifti: Callable = staticmethod(save_nifti)


@pytest.fixture(scope="session")
def scans() -> type[Scans]:
    """Writers of synthetic scans."""
    return Scans
