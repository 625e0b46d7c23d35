"""Scans in and segmentations out: NIfTI files and DICOM series, found by header, checked, read and written."""

from .checks import CheckScand
from .discovery import Discovery, Fault, discover
from .reader import ScanReader
from .segmentation import write_dicom_seg, write_nifti

__all__ = ["CheckScand", "Discovery", "Fault", "ScanReader", "discover", "write_dicom_seg", "write_nifti"]
