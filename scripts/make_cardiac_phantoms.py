"""Draw the sample scans of the cardiac bundle: phantoms, because they may be redistributed without anyone's consent.

They show a heart in short-axis slices with the contrast of balanced steady-state free precession, as NIfTI at end
diastole and end systole, and as a DICOM cine series of an invented patient. Sizes follow the label maps of the M&Ms
challenge's vendor A. The same versions of numpy, scipy and pydicom give the same bytes.

    python scripts/make_cardiac_phantoms.py --label_dir <folder>
"""

import gzip
from dataclasses import dataclass
from pathlib import Path

import fire
import nibabel
import numpy as np
from drawing import smooth_noise
from mr_image import mr_image
from pydicom.uid import generate_uid
from scipy.ndimage import gaussian_filter

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "cardiac_cine_mri_segmentation"
LEFT_VENTRICLE, MYOCARDIUM, RIGHT_VENTRICLE = 1, 2, 3
# Signal, where 1 is fat far from the coil.
LUNG, MUSCLE, LIVER, SPLEEN, BLOOD, FAT = 0.05, 0.14, 0.22, 0.30, 0.52, 0.85
# Value of the file for a signal of 1, and standard deviation of the noise in the same units.
SCALE, NOISE = 220, 1.6
# From the mitral valve to the apex at end diastole, and how far the valve comes down until end systole, in mm.
LENGTH, DESCENT = 64.0, 8.0
# Part of the contraction that each phase of the cine series shows; the phases share the heart beat equally.
CONTRACTIONS = (0.0, 0.75, 1.0, 0.35)


@dataclass(frozen=True)
class Grid:
    """Voxels of a scan. Slices go from the apex to the base.

    Attributes:
        size: number of rows and of columns.
        slices: number of slices.
        spacing: distance of pixels in mm.
        distance: distance of slices in mm.
        thickness: thickness of a slice in mm.
        top: distance of the last slice from the mitral valve at end diastole, away from the apex, in mm.
    """

    size: int
    slices: int
    spacing: float
    distance: float
    thickness: float
    top: float

    def depth(self, index: int) -> float:
        """Return how far a slice lies from the mitral valve at end diastole towards the apex, in mm."""
        return (self.slices - 1 - index) * self.distance - self.top

    def axes(self) -> np.ndarray:
        """Return the directions of rows, columns and slices in the patient (left, posterior, superior), as columns."""
        apex = np.array([0.65, -0.55, -0.52])
        apex /= np.linalg.norm(apex)
        row = np.array([0.70, 0.65, 0.20])
        row -= row @ apex * apex
        row /= np.linalg.norm(row)
        return np.stack([row, np.cross(row, apex), -apex], 1)

    def affine(self) -> np.ndarray:
        """Return the affine from (column, row, slice) to mm in the patient (left, posterior, superior)."""
        affine = np.eye(4)
        affine[:3, :3] = self.axes() * [self.spacing, self.spacing, self.distance]
        affine[:3, 3] = self.axes() @ [-self.size * self.spacing / 2, -self.size * self.spacing / 2, -self.depth(0)]
        return affine


NIFTI = Grid(size=192, slices=10, spacing=1.3, distance=9.0, thickness=9.0, top=9.0)
CINE = Grid(size=112, slices=8, spacing=1.5, distance=10.0, thickness=8.0, top=8.0)


class Slice:
    """One slice while it is drawn.

    Attributes:
        x: distance of each pixel from the middle of the left ventricle along the rows, in mm.
        y: the same along the columns, downwards.
        spacing: distance of pixels in mm.
        signal: what is drawn so far, where 1 is fat far from the coil.
    """

    def __init__(self, grid: Grid, depth: float) -> None:
        y, x = np.mgrid[: grid.size, : grid.size]
        middle = (grid.size - 1) / 2
        self.x = (x - middle) * grid.spacing - 4 - 0.1 * depth
        self.y = (y - middle) * grid.spacing + 4
        self.spacing = grid.spacing
        self.signal = np.zeros(x.shape)

    def ellipse(self, x: float, y: float, a: float, b: float, inset: float | np.ndarray = 0) -> np.ndarray:
        """Return an ellipse: 1 inside, 0 outside, with an edge of one pixel.

        Args:
            x: place of its middle along the rows, in mm.
            y: place of its middle along the columns, in mm.
            a: half of its width in mm.
            b: half of its height in mm.
            inset: how far its edge is moved inwards, in mm.
        """
        distance = (1 - np.hypot((self.x - x) / a, (self.y - y) / b)) * min(a, b) - inset
        return np.clip(distance / self.spacing + 0.5, 0, 1)

    def lay(self, weight: np.ndarray, signal: float | np.ndarray) -> None:
        """Lay a tissue over what is drawn; the weight is 1 where it covers a pixel."""
        self.signal = (1 - weight) * self.signal + weight * signal


def surroundings(plane: Slice, depth: float, rng: np.random.Generator) -> None:
    """Draw chest wall, lung, liver, spleen and aorta; those below the diaphragm grow towards the apex."""
    towards_apex = np.clip(depth / LENGTH, 0, 1.2)
    wave = 2.5 * np.sin(plane.x / 17) + 1.5 * np.sin(plane.x / 7 + 1)
    layers = ((0, FAT), (16 + 14 * towards_apex + wave, MUSCLE), (28 + 14 * towards_apex + 0.3 * wave, LUNG))
    for inset, signal in layers:
        plane.lay(plane.ellipse(4, 42, 150, 122, inset), signal)
    ribs = 1 - (23 + 14 * towards_apex) / 122
    for angle in np.arange(0.15, 2 * np.pi, 0.42):
        plane.lay(plane.ellipse(4 + 150 * ribs * np.cos(angle), 42 + 122 * ribs * np.sin(angle), 7, 3.5), 0.35 * FAT)
    for _ in range(30):
        x, y = rng.uniform(25, 105), rng.uniform(-35, 95)
        radius = rng.uniform(1.0, 2.6)
        plane.lay(0.7 * plane.ellipse(x, y, radius, radius * rng.uniform(1, 1.8)), BLOOD)
    texture = 1 + 0.08 * smooth_noise(plane.x.shape, 2 / plane.spacing, rng)
    liver = plane.ellipse(-62 + 8 * towards_apex, 88 - 12 * towards_apex, 68, 50 + 12 * towards_apex)
    spleen = plane.ellipse(50, 92 - 10 * towards_apex, 26 + 12 * towards_apex, 22 + 10 * towards_apex)
    plane.lay(liver, LIVER * texture)
    plane.lay(spleen, SPLEEN * texture)
    for x, y in ((-70, 70), (-45, 95), (-30, 75)):
        plane.lay(plane.ellipse(x, y, 3, 4.5), BLOOD * 0.8)
    # Fat around the heart, between the lungs.
    plane.lay(0.6 * plane.ellipse(-24, -4, 66 - 22 * towards_apex, 50 - 12 * towards_apex), 0.55 * FAT * texture)
    plane.lay(plane.ellipse(38, 58, 13, 13), MUSCLE)
    plane.lay(plane.ellipse(38, 58, 11, 11), BLOOD * 0.95)


def atria(plane: Slice, texture: np.ndarray) -> None:
    """Draw what lies above the mitral valve: both atria, the aorta's root and the outflow of the right ventricle."""
    for x, y, a, b in ((3, 8, 31, 26), (-50, 16, 27, 30), (-16, -17, 17, 17), (-40, -34, 23, 17)):
        plane.lay(plane.ellipse(x, y, a + 3, b + 3), MUSCLE)
        plane.lay(plane.ellipse(x, y, a, b), BLOOD * texture)


def ventricles(plane: Slice, place: float, contraction: float, rng: np.random.Generator) -> np.ndarray:
    """Draw both ventricles and return the label map, uint8.

    Args:
        plane: slice that is drawn.
        place: place along the ventricles; 0 at the mitral valve, 1 at the apex.
        contraction: 0 at end diastole, 1 at end systole.
        rng: generator of the texture of the blood and of the trabeculae.
    """
    texture = 1 + 0.07 * smooth_noise(plane.x.shape, 3 / plane.spacing, rng)
    cavity = 29.0 * (1 - 0.58 * place**3) * (1 - 0.21 * contraction)
    outer = cavity + (8.7 - 2.4 * place) + contraction * (2.0 + 0.8 * place)
    height = 43 * (1 - 0.74 * place**1.8) * (1 - 0.17 * contraction)
    width, offset = 0.74 * height, -outer - 1.5 + 5 * contraction
    outline = 1 + 0.035 * np.sin(5 * np.arctan2(plane.y, plane.x)) + 0.02 * np.sin(9 * np.arctan2(plane.y, plane.x) + 1)
    left = np.clip((cavity * outline - np.hypot(plane.x, plane.y * 1.03)) / plane.spacing + 0.5, 0, 1)
    wall = plane.ellipse(0, 0, outer, outer)
    right = plane.ellipse(offset, 3, width, height) * (1 - wall)
    plane.lay(plane.ellipse(offset, 3, width + 3, height + 3), MUSCLE)
    plane.lay(right, BLOOD * texture * 0.95)
    trabeculae = np.clip(smooth_noise(plane.x.shape, 1.6 / plane.spacing, rng) - 0.9, 0, 1)
    plane.lay(right * np.clip((offset - plane.x) / width + 0.6, 0, 1) * trabeculae, MUSCLE)
    plane.lay(wall, MUSCLE * (1 + 0.06 * smooth_noise(plane.x.shape, 2 / plane.spacing, rng)))
    plane.lay(left, BLOOD * texture)
    rim = np.clip(1 - (cavity - np.hypot(plane.x, plane.y)) / (0.3 * cavity), 0, 1)
    plane.lay(left * rim * trabeculae * np.clip(2 * place, 0, 1), MUSCLE)
    # The papillary muscles belong to the cavity, as in the challenge's label maps.
    papillary = 4.6 * np.sin(np.pi * np.clip((place - 0.1) / 0.85, 0, 1)) ** 0.5
    if papillary > 1:
        for angle in (0.45, 2.0):
            x, y = 0.66 * cavity * np.cos(angle), 0.66 * cavity * np.sin(angle)
            plane.lay(plane.ellipse(x, y, papillary, papillary * 0.85), MUSCLE * 1.15)
    labels = np.zeros(plane.x.shape, np.uint8)
    labels[right > 0.5] = RIGHT_VENTRICLE
    labels[wall > 0.5] = MYOCARDIUM
    labels[left > 0.5] = LEFT_VENTRICLE
    return labels


def draw(grid: Grid, contraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a stack of slices, int16, and its label map, uint8, both (columns, rows, slices).

    Args:
        grid: voxels of the stack.
        contraction: 0 at end diastole, 1 at end systole.
        seed: seed of the noise; what is still in the chest is the same with every seed.
    """
    images, label_maps = [], []
    noise = np.random.default_rng(seed)
    for index in range(grid.slices):
        still = np.random.default_rng([index, grid.slices])
        depth = grid.depth(index)
        plane = Slice(grid, depth)
        surroundings(plane, depth, still)
        labels = np.zeros(plane.x.shape, np.uint8)
        place = (depth - DESCENT * contraction) / (LENGTH - DESCENT * contraction)
        if place < 0:
            atria(plane, 1 + 0.09 * smooth_noise(plane.x.shape, 3 / plane.spacing, still))
        elif place <= 1:
            labels = ventricles(plane, place, contraction, still)
        # The coil lies on the chest; far from it, the signal fades.
        coil = 0.62 + 1.0 * np.exp(-np.hypot(plane.x + 30, plane.y + 100) / 60)
        signal = SCALE * coil * gaussian_filter(plane.signal, 0.5)
        real, imaginary = (NOISE * smooth_noise(signal.shape, 0.6, noise) for _ in range(2))
        images.append(np.hypot(signal + real, imaginary).round().astype(np.int16).T)
        label_maps.append(labels.T)
    return np.stack(images, -1), np.stack(label_maps, -1)


def save_nifti(voxels: np.ndarray, grid: Grid, path: Path) -> None:
    """Write voxels as NIfTI, with their geometry and nothing else in the header."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine()
    image = nibabel.Nifti1Image(voxels, affine)
    # Code 1: coordinates of the scanner.
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    path.write_bytes(gzip.compress(image.to_bytes(), mtime=0))


def save_cine(phases: list[np.ndarray], grid: Grid, folder: Path) -> None:
    """Write the phases as one series of single-frame MR images, slice by slice from the base, one file each."""
    rng = np.random.default_rng(0)
    affine, axes = grid.affine(), grid.axes()
    orientation = [f"{value:.6f}" for value in (*axes[:, 0], *axes[:, 1])]
    largest = int(max(phase.max() for phase in phases))
    for number, index in enumerate(reversed(range(grid.slices))):
        # Each slice is a breath-hold of its own, in which the heart beats a little faster or slower.
        beat = rng.uniform(860, 960)
        for phase, voxels in enumerate(phases):
            instance = number * len(phases) + phase + 1
            image = mr_image(
                np.ascontiguousarray(voxels[..., index].T).astype(np.uint16),
                largest,
                SOPInstanceUID=uid("instance", str(instance)),
                StudyInstanceUID=uid("study"),
                SeriesInstanceUID=uid("series"),
                FrameOfReferenceUID=uid("frame of reference"),
                PatientName="PHANTOM",
                PatientID="PHANTOM",
                **dict.fromkeys(("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"), "20260101"),
                **dict.fromkeys(("StudyTime", "SeriesTime"), "120000"),
                **dict.fromkeys(("AcquisitionTime", "ContentTime"), f"12{number // 2:02d}{number % 2 * 30:02d}"),
                AcquisitionNumber=number + 1,
                InstanceNumber=instance,
                SeriesDescription="cine short axis phantom",
                BodyPartExamined="HEART",
                Manufacturer="grata",
                ImageType=["DERIVED", "SECONDARY", "OTHER"],
                ScanningSequence="GR",
                SequenceVariant=["SS", "SK"],
                ScanOptions="CG",
                MRAcquisitionType="2D",
                RepetitionTime=3.2,
                EchoTime=1.6,
                EchoTrainLength=1,
                FlipAngle=60,
                TriggerTime=round(beat * phase / len(phases), 1),
                NominalInterval=round(beat),
                HeartRate=round(60000 / beat),
                CardiacNumberOfImages=len(phases),
                PixelSpacing=[grid.spacing, grid.spacing],
                SliceThickness=grid.thickness,
                SpacingBetweenSlices=grid.distance,
                ImageOrientationPatient=orientation,
                ImagePositionPatient=[f"{value:.4f}" for value in (affine @ [0, 0, index, 1])[:3]],
            )
            image.save_as(folder / f"{instance:03d}.dcm", enforce_file_format=True)


def uid(*names: str) -> str:
    """Return a UID that is the same in every run."""
    return generate_uid(entropy_srcs=["grata cardiac phantom", *names])


def main(output_dir: str = str(BUNDLE / "sample_scans"), label_dir: str | None = None) -> None:
    """Write the scans.

    Args:
        output_dir: folder of the scans.
        label_dir: folder of the label maps, one NIfTI file for each NIfTI scan and each phase of the cine series, in
            the order of its trigger times; without it, none are written.
    """
    nifti, cine = Path(output_dir, "nifti"), Path(output_dir, "dicom", "cine")
    for folder in (nifti, cine, *([] if label_dir is None else [Path(label_dir)])):
        folder.mkdir(parents=True, exist_ok=True)
    label_maps = {}
    for seed, (name, contraction) in enumerate((("phantom_ED", 0.0), ("phantom_ES", 1.0))):
        voxels, label_maps[name] = draw(NIFTI, contraction, seed)
        save_nifti(voxels, NIFTI, nifti / f"{name}.nii.gz")
    drawn = [draw(CINE, contraction, seed) for seed, contraction in enumerate(CONTRACTIONS, len(label_maps))]
    save_cine([voxels for voxels, _ in drawn], CINE, cine)
    label_maps |= {f"cine_{phase}": labels for phase, (_, labels) in enumerate(drawn, 1)}
    if label_dir is not None:
        for name, labels in label_maps.items():
            save_nifti(labels, CINE if name.startswith("cine") else NIFTI, Path(label_dir, f"{name}.nii.gz"))


if __name__ == "__main__":
    fire.Fire(main)
