"""Scans in and segmentations out: NIfTI files and DICOM series, found by header, checked, read and written."""

from .checks import CheckLabeld, CheckScand
from .discovery import Discovery, Fault, discover
from .reader import ScanReader
from .segmentation import write_dicom_seg, write_nifti

__all__ = ["CheckLabeld", "CheckScand", "Discovery", "Fault", "ScanReader", "discover", "write_dicom_seg", "write_nifti"]
