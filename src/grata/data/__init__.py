"""Scans and segmentations: find, check, read and write NIfTI, MetaImage and NRRD files, DICOM series and pictures."""

from .checks import (
    MAX_VOXELS,
    CheckExtentd,
    CheckLabeld,
    CheckScand,
    CheckVoxelsd,
    check_max_voxels,
    check_voxels,
    count_windows,
)
from .discovery import Discovery, Fault, discover
from .expected import CompareScand
from .phases import TakePhased
from .reader import ScanReader
from .segmentation import write_dicom_seg, write_itk, write_nifti, write_png

__all__ = [
    "MAX_VOXELS",
    "CheckExtentd",
    "CheckLabeld",
    "CheckScand",
    "CheckVoxelsd",
    "CompareScand",
    "Discovery",
    "Fault",
    "ScanReader",
    "TakePhased",
    "check_max_voxels",
    "check_voxels",
    "count_windows",
    "discover",
    "write_dicom_seg",
    "write_itk",
    "write_nifti",
    "write_png",
]
