"""Scans and segmentations: find, check, read and write NIfTI, MetaImage and NRRD files, DICOM series and pictures."""

from .checks import CheckExtentd, CheckLabeld, CheckScand
from .discovery import Discovery, Fault, discover
from .expected import CompareScand
from .reader import ScanReader
from .segmentation import write_dicom_seg, write_itk, write_nifti, write_png

__all__ = [
    "CheckExtentd",
    "CheckLabeld",
    "CheckScand",
    "CompareScand",
    "Discovery",
    "Fault",
    "ScanReader",
    "discover",
    "write_dicom_seg",
    "write_itk",
    "write_nifti",
    "write_png",
]
