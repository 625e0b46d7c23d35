"""Scans in and segmentations out: NIfTI files and DICOM series, found by header, checked, read and written."""

from grata.data.checks import CheckScand
from grata.data.discovery import Discovery, Fault, discover
from grata.data.output import atomic_write, check_output_dir, remove_leftovers
from grata.data.reader import ScanReader
from grata.data.segmentation import write_dicom_seg, write_nifti

__all__ = [
    "CheckScand",
    "Discovery",
    "Fault",
    "ScanReader",
    "atomic_write",
    "check_output_dir",
    "discover",
    "remove_leftovers",
    "write_dicom_seg",
    "write_nifti",
]
