"""MR images of invented patients, which the scripts of the sample scans share."""

from typing import Any

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage


def mr_image(pixels: np.ndarray, largest: int, **attributes: Any) -> pydicom.Dataset:
    """Return one MR Image Storage object with all attributes of type 1 and 2.

    Args:
        pixels: image, uint16, 12 bits, (rows, columns).
        largest: largest value of the series, for the window.
        attributes: by keyword, what tells the image from others: UIDs, patient, series, place and sequence.
    """
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.Modality = MRImageStorage, "MR"
    dataset.PositionReferenceIndicator = ""
    dataset.PatientBirthDate, dataset.PatientSex, dataset.PatientPosition = "", "O", "HFS"
    dataset.AccessionNumber, dataset.ReferringPhysicianName, dataset.StudyID = "", "", "1"
    dataset.SeriesNumber = 1
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.WindowCenter, dataset.WindowWidth = largest // 2, largest
    dataset.PixelData = np.ascontiguousarray(pixels, dtype="<u2").tobytes()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset
