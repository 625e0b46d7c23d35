"""Cine of the heart, in DICOM series and in files of four axes: each phase is a case of its own."""

import re

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from monai.transforms import Compose, Invertd, LoadImaged, Orientationd, Spacingd
from pydicom.uid import generate_uid

from grata.data import ScanReader, TakePhased, discover, write_dicom_seg, write_itk, write_nifti
from grata.errors import GrataError

STEPS = (31.2, 30.8, 31.3, 30.9)
SEGMENTS = [
    {"value": 1, "label": "Left ventricle", "category": ["91723000", "SCT", "Anatomical Structure"],
     "type": ["87878005", "SCT", "Left ventricle"]}
]  # fmt: skip
AFFINE = np.array([[0, -1.4, 0, 20], [1.3, 0, 0, -30], [0, 0, 8, 5], [0, 0, 0, 1.0]])


def cine(scans, phases=3, keyword="TriggerTime", steps=STEPS):
    """Return a series whose slices have steps of time of their own; phase p of slice k holds ``voxels(slices)[k] + p``.

    The images are in no order, neither that of their numbers nor that of time.
    """
    datasets = []
    for index, step in enumerate(steps):
        for phase in range(phases):
            dataset = scans.series(slices=len(steps))[index]
            dataset.SOPInstanceUID = generate_uid(entropy_srcs=["cine", f"{index} {phase}"])
            dataset.PixelData = (scans.voxels(len(steps))[index] + phase).tobytes()
            setattr(dataset, keyword, round(phase * step, 1))
            datasets.append(dataset)
    order = np.random.default_rng(2).permutation(len(datasets))
    for number, place in enumerate(order, 1):
        datasets[place].InstanceNumber = number
    return [datasets[place] for place in order]


def endings(found):
    return [case["case"].split("-", 3)[-1] for case in found.cases]


@pytest.mark.parametrize(
    ("phases", "keyword", "first", "last"),
    [
        (3, "TriggerTime", "CardiacPhase01", "CardiacPhase03"),
        (11, "TriggerTime", "CardiacPhase01", "CardiacPhase11"),
        (3, "NominalCardiacTriggerDelayTime", "CardiacPhase01", "CardiacPhase03"),
    ],
)
def test_each_phase_of_a_series_is_a_case_although_trigger_times_differ_from_slice_to_slice(
    tmp_path, scans, phases, keyword, first, last
):
    scans.save(cine(scans, phases, keyword), tmp_path)
    found = discover(tmp_path)
    assert not found.faults and len(found.cases) == phases
    assert (endings(found)[0], endings(found)[-1]) == (first, last)
    for phase, case in enumerate(found.cases):
        assert "phase" not in case
        array, meta = ScanReader().get_data(case["image"])
        np.testing.assert_array_equal(array, scans.voxels(4).transpose(2, 1, 0) + phase)
        np.testing.assert_allclose(meta["affine"], scans.affine("axial"), atol=1e-4)
    (note,) = found.notes
    assert "Cardiac Phase 01, 02, 03" in note and "select, as in 'CardiacPhase=01'" in note
    # a time of the heartbeat has a decimal point here
    assert not re.search(r"\d\.\d", note)
    write_dicom_seg(np.ones(array.shape, np.uint8), found.cases[-1], SEGMENTS, tmp_path / "seg.dcm")
    referenced = pydicom.dcmread(tmp_path / "seg.dcm").ReferencedSeriesSequence[0].ReferencedInstanceSequence
    uids = {generate_uid(entropy_srcs=["cine", f"{index} {phases - 1}"]) for index in range(4)}
    assert {item.ReferencedSOPInstanceUID for item in referenced} == uids


@pytest.mark.parametrize(
    ("select", "chosen"),
    [
        ("CardiacPhase=1", [1]),
        ("cardiac phase=02,CardiacPhase=10", [2, 10]),
        ({"CardiacPhase": [1, 10]}, [1, 10]),
        (["CardiacPhase=11"], [11]),
    ],
)
def test_phases_are_selected_by_their_numbers_in_series_and_in_files(tmp_path, scans, select, chosen):
    scans.save(cine(scans, 11), tmp_path)
    scans.nifti(tmp_path / "a.nii.gz", (6, 5, 4, 11), AFFINE)
    found = discover(tmp_path, select=select, fourth_axis="phases")
    numbers = [f"CardiacPhase{number:02d}" for number in chosen]
    assert endings(found) == [*numbers, *numbers]
    assert {case["case"] for case in found.cases} <= {
        case["case"] for case in discover(tmp_path, fourth_axis="phases").cases
    }


def test_the_heart_may_beat_faster_in_another_breath_hold_and_phases_may_have_been_left_out(tmp_path, scans):
    datasets = cine(scans, 20, steps=(50.0, 37.5, 62.5, 41.3))
    scans.save(datasets, tmp_path / "all")
    assert endings(discover(tmp_path / "all")) == [f"CardiacPhase{number:02d}" for number in range(1, 21)]
    pixels = {(scans.voxels(4)[k] + p).tobytes() for k in range(4) for p in (0, 3, 4, 19)}
    scans.save([dataset for dataset in datasets if dataset.PixelData in pixels], tmp_path / "some")
    assert endings(discover(tmp_path / "some")) == [f"CardiacPhase0{number}" for number in range(1, 5)]


def test_phases_whose_times_are_the_same_at_every_place_keep_their_ids_and_can_be_selected(tmp_path, scans):
    scans.save(cine(scans, 3, steps=(31.2,) * 4), tmp_path)
    assert endings(discover(tmp_path)) == ["TriggerTime0", "TriggerTime31.2", "TriggerTime62.4"]
    assert endings(discover(tmp_path, select="CardiacPhase=2")) == ["TriggerTime31.2"]


def test_magnitude_and_phase_images_of_a_cine_are_told_apart_too(tmp_path, scans):
    datasets = []
    for kind in "MP":
        for dataset in cine(scans, 2):
            dataset.SOPInstanceUID = generate_uid(entropy_srcs=[dataset.SOPInstanceUID, kind])
            dataset.ImageType = ["ORIGINAL", "PRIMARY", kind]
            datasets.append(dataset)
    scans.save(datasets, tmp_path)
    found = discover(tmp_path)
    assert endings(found) == [f"ImageType{kind}-CardiacPhase0{number}" for kind in "MP" for number in (1, 2)]


def test_a_copied_image_is_no_further_phase(tmp_path, scans):
    first, *_ = scans.save(cine(scans), tmp_path)
    (tmp_path / "copy.dcm").write_bytes(first.read_bytes())
    assert endings(discover(tmp_path)) == ["CardiacPhase01", "CardiacPhase02", "CardiacPhase03"]


def slice_after_slice(place, phase):
    return 1 + 4 * place + phase


def phase_after_phase(place, phase):
    return 1 + 4 * phase + (3 - place)


@pytest.mark.parametrize("scheme", [slice_after_slice, phase_after_phase])
@pytest.mark.parametrize("spoil", [None, "exchanged", "uncounted", "timed"])
def test_instance_numbers_tell_the_phases_where_no_image_has_a_trigger_time(tmp_path, scans, scheme, spoil):
    datasets = cine(scans, 4)
    for dataset in datasets:
        place = round((dataset.ImagePositionPatient[2] - 17) / 2.5)
        phase = round(dataset.TriggerTime / STEPS[place])
        dataset.InstanceNumber, dataset.CardiacNumberOfImages = scheme(place, phase), 4
        del dataset.TriggerTime
    if spoil == "exchanged":
        datasets[0].InstanceNumber, datasets[1].InstanceNumber = 50, 51
    elif spoil == "uncounted":
        del datasets[0].CardiacNumberOfImages
    elif spoil == "timed":
        datasets[0].TriggerTime = 0
    scans.save(datasets, tmp_path)
    found = discover(tmp_path)
    assert bool(found.faults) == bool(spoil)
    assert endings(found) == [f"CardiacPhase0{number}" for number in range(1, 5)] * (not spoil)
    for phase, case in enumerate(found.cases):
        array, _ = ScanReader().get_data(case["image"])
        np.testing.assert_array_equal(array, scans.voxels(4).transpose(2, 1, 0) + phase)


def without_one(datasets):
    del datasets[5]


def without_one_time(datasets):
    del datasets[5].TriggerTime


def repeated(datasets):
    """Trigger times of repetitions, which scatter around one value."""
    random = np.random.default_rng(0)
    for dataset in datasets:
        dataset.TriggerTime = round(random.normal(300, 5), 1)


@pytest.mark.parametrize(
    ("change", "phases"), [(without_one, 5), (without_one_time, 5), (repeated, 2), (repeated, 3), (repeated, 5)]
)
def test_what_is_no_cine_of_all_slices_is_refused_as_a_whole(tmp_path, scans, change, phases):
    datasets = cine(scans, phases)
    change(datasets)
    scans.save(datasets, tmp_path)
    found = discover(tmp_path)
    assert not found.cases
    (fault,) = found.faults
    assert "duplicate slices" in fault.message
    if change is without_one:
        assert re.search(r"\d of \d places hold 5, but that at -?\d+\.\d\d mm .* holds 4,", fault.message)
        assert "Export the series again, complete" in fault.message and "select" not in fault.message


def test_damage_in_one_phase_is_a_fault_of_that_one(tmp_path, scans):
    datasets = cine(scans)
    damaged = next(d for d in datasets if d.TriggerTime == round(STEPS[1], 1))
    damaged.PixelData = damaged.PixelData[:50]
    scans.save(datasets, tmp_path)
    found = discover(tmp_path)
    assert endings(found) == ["CardiacPhase01", "CardiacPhase03"]
    assert found.faults[0].case.endswith("-CardiacPhase02")


def save_cine(path, phases=3, shape=(6, 5, 4), values=None):
    """Write a file in which phase p holds p everywhere but for one voxel of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if values is None:
        values = np.broadcast_to(np.arange(phases), (*shape, phases)).copy()
        values[0, 0, 0] += 10
    image = nibabel.Nifti1Image(values.astype(np.int16), AFFINE)
    image.set_sform(AFFINE, code=1)
    image.set_qform(None, code=0)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 0.0312
    nibabel.save(image, path)
    return path


LOAD = LoadImaged(["image", "label"], reader=ScanReader, ensure_channel_first=True, image_only=True,
                  allow_missing_keys=True)  # fmt: skip
TAKE = TakePhased(["image", "label"], allow_missing_keys=True)


def test_each_phase_of_a_file_is_a_case_beside_stacks_of_one_phase(tmp_path, scans):
    save_cine(tmp_path / "patient001_4d.nii.gz")
    scans.nifti(tmp_path / "patient002_ED.nii.gz", (6, 5, 4))
    found = discover(tmp_path, fourth_axis="phases")
    assert not found.faults
    assert [(case["case"], case.get("phase")) for case in found.cases] == [
        ("patient001_4d-CardiacPhase01", 0),
        ("patient001_4d-CardiacPhase02", 1),
        ("patient001_4d-CardiacPhase03", 2),
        ("patient002_ED", None),
    ]
    assert set(found.paths.values()) == {"patient001_4d.nii.gz", "patient002_ED.nii.gz"}
    assert len(found.places) == len(found.paths) == 4
    assert "1 file holds several phases of the heart" in found.notes[0]
    for phase, case in enumerate(found.cases[:3]):
        item = TAKE(LOAD(case))
        assert item["image"].shape == (1, 6, 5, 4) and item["image"].unique().tolist() == [phase, phase + 10]
    stack = LOAD(found.cases[3])
    assert torch.equal(TAKE(stack)["image"], stack["image"]) and "phase" not in item


def test_by_default_the_fourth_axis_is_channels(tmp_path):
    save_cine(tmp_path / "a.nii.gz")
    (case,) = discover(tmp_path).cases
    assert case["case"] == "a" and "phase" not in case and LOAD(case)["image"].shape == (3, 6, 5, 4)
    with pytest.raises(GrataError, match="fourth_axis: must be one of channels, phases, got 'time'"):
        discover(tmp_path, fourth_axis="time")


@pytest.mark.parametrize("write", [write_nifti, write_itk])
def test_what_is_predicted_of_a_phase_is_written_in_the_space_of_its_stack(tmp_path, write):
    save_cine(tmp_path / "a.nii.gz")
    case = discover(tmp_path, fourth_axis="phases").cases[1]
    preprocessing = Compose(
        [LOAD, TAKE, Orientationd("image", axcodes="RAS", labels=None), Spacingd("image", pixdim=(1.0, 1.0, 4.0))]
    )
    item = preprocessing(case)
    assert item["image"].shape == (1, 7, 7, 7)
    item["pred"] = item["image"].clone()
    restored = Invertd("pred", preprocessing, orig_keys="image", nearest_interp=True)(item)["pred"]
    assert restored.shape == (1, 6, 5, 4)
    np.testing.assert_allclose(restored.affine, AFFINE, atol=1e-5)
    labels = (restored[0].numpy() > 5).astype(np.uint8)
    end = ".nii.gz" if write is write_nifti else ".nrrd"
    write(labels, case, tmp_path / f"out{end}")
    array, meta = ScanReader().get_data([str(tmp_path / f"out{end}")])
    np.testing.assert_array_equal(array, labels)
    np.testing.assert_allclose(meta["affine"], AFFINE, atol=1e-5)
    if write is write_nifti:
        written = nibabel.load(tmp_path / "out.nii.gz")
        assert written.shape == (6, 5, 4) and written.header["pixdim"][4] == 1


def test_a_phase_keeps_the_memory_of_no_other(tmp_path):
    save_cine(tmp_path / "a.nii.gz", phases=25)
    image = TAKE(LOAD(discover(tmp_path, fourth_axis="phases").cases[7]))["image"]
    assert image.untyped_storage().nbytes() == 6 * 5 * 4 * 4


@pytest.mark.parametrize("where", ["images", "beside", "labels_dir"])
def test_labels_of_phases_lie_in_a_file_of_four_axes_or_in_one_for_each(tmp_path, where):
    folder = tmp_path / ("data/images" if where == "images" else "data")
    labels = {"images": tmp_path / "data" / "labels", "beside": folder, "labels_dir": tmp_path / "other"}[where]
    end = "_seg" if where == "beside" else ""
    for name in ("whole", "single"):
        save_cine(folder / f"{name}.nii.gz")
    save_cine(labels / f"whole{end}.nii.gz", values=np.broadcast_to(np.arange(3), (6, 5, 4, 3)))
    save_cine(labels / f"single-CardiacPhase02{end}.nii.gz", values=np.full((6, 5, 4), 7))
    found = discover(tmp_path / "data", fourth_axis="phases", labels_dir=labels if where == "labels_dir" else None)
    assert not found.faults and len(found.cases) == 6
    read = {case["case"]: TAKE(LOAD(case)).get("label") for case in found.cases}
    values = {case: None if label is None else label.unique().tolist() for case, label in read.items()}
    assert values == {
        "single-CardiacPhase01": None, "single-CardiacPhase02": [7], "single-CardiacPhase03": None,
        "whole-CardiacPhase01": [0], "whole-CardiacPhase02": [1], "whole-CardiacPhase03": [2],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("a_seg", (6, 5, 4), "has 1 phase, but its image has 3. Give .* named like 'a-CardiacPhase01'"),
        ("a_seg", (6, 5, 4, 2), "has 2 phases, but its image has 3"),
        ("a_seg", (6, 5, 3, 3), "does not lie on the voxels of its image"),
        ("a-CardiacPhase02_seg", (6, 5, 3), "does not lie on the voxels of its image"),
    ],
)
def test_labels_that_do_not_fit_the_phases_are_a_fault(tmp_path, name, shape, message):
    save_cine(tmp_path / "a.nii.gz")
    save_cine(tmp_path / f"{name}.nii.gz", values=np.zeros(shape))
    found = discover(tmp_path, fourth_axis="phases")
    assert all(re.search(message, fault.message) for fault in found.faults)
    of_one = name.startswith("a-")
    assert [case["case"] for case in found.cases] == ["a-CardiacPhase01", "a-CardiacPhase03"] * of_one
    assert found.faults[0].case == ("a-CardiacPhase02" if of_one else found.faults[0].case)


def test_what_is_wrong_with_a_file_is_said_once_and_not_of_each_phase(tmp_path):
    save_cine(tmp_path / "a.nii.gz")
    path = save_cine(tmp_path / "b.nii.gz")
    image = nibabel.load(path)
    image.header["sform_code"] = 0
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)
    save_cine(tmp_path / "c.nii.gz", values=np.zeros((6, 5, 4, 2, 2)))
    found = discover(tmp_path, fourth_axis="phases")
    assert [case["case"][0] for case in found.cases] == ["a"] * 3
    assert [fault.case for fault in found.faults] == ["b", "c"]
    assert "no orientation" in found.faults[0].message and "has 5 axes" in found.faults[1].message


def test_a_list_of_cases_names_the_file_and_the_phases_are_selected(tmp_path):
    for name in ("a", "a_mask", "b"):
        save_cine(tmp_path / f"{name}.nii.gz")
    (tmp_path / "list.csv").write_text("image,mask,site\na.nii.gz,a_mask.nii.gz,x\n./a.nii.gz,a_mask.nii.gz,x\n")
    found = discover(tmp_path, cases_file="list.csv", fourth_axis="phases", select="CardiacPhase=1,CardiacPhase=3")
    assert [(case["case"], case["phase"], case["site"]) for case in found.cases] == [
        ("a-CardiacPhase01", 0, "x"),
        ("a-CardiacPhase03", 2, "x"),
    ]
    assert all(case["label"].endswith("a_mask.nii.gz") for case in found.cases)


def test_a_phase_and_a_file_of_its_name_are_two_cases(tmp_path):
    save_cine(tmp_path / "a.nii.gz", phases=2)
    save_cine(tmp_path / "a-CardiacPhase01.nii.gz", values=np.zeros((6, 5, 4)))
    ids = [case["case"] for case in discover(tmp_path, fourth_axis="phases").cases]
    assert len(set(ids)) == 3 and "a-CardiacPhase01" in ids
    assert sum(bool(re.fullmatch(r"a-[0-9a-f]{8}-CardiacPhase0[12]", case)) for case in ids) == 2


def test_phases_that_no_file_has_are_refused_and_files_without_them_are_counted(tmp_path):
    save_cine(tmp_path / "a.nii.gz", phases=2)
    with pytest.raises(GrataError, match="select: no file has the phases .* from CardiacPhase=1 to CardiacPhase=2"):
        discover(tmp_path, fourth_axis="phases", select="CardiacPhase=3")
    save_cine(tmp_path / "b.nii.gz", phases=3)
    found = discover(tmp_path, fourth_axis="phases", select="CardiacPhase=3")
    assert [case["case"] for case in found.cases] == ["b-CardiacPhase03"]
    assert found.notes == ["1 file that holds up to 2 phases and none of the selected ones was passed over."]


def test_nrrd_holds_phases_too(tmp_path):
    header = (
        "NRRD0004\ntype: short\ndimension: 4\nspace: left-posterior-superior\nsizes: 6 5 4 3\n"
        "space directions: (1,0,0) (0,1,0) (0,0,8) none\nkinds: domain domain domain list\nendian: little\n"
        "encoding: raw\nspace origin: (0,0,0)\n\n"
    )
    values = np.broadcast_to(np.arange(3, dtype="<i2")[:, None], (3, 120))
    (tmp_path / "a.nrrd").write_bytes(header.encode() + values.tobytes())
    found = discover(tmp_path, fourth_axis="phases")
    assert [case["case"] for case in found.cases] == [f"a-CardiacPhase0{number}" for number in (1, 2, 3)]
    assert [TAKE(LOAD(case))["image"].unique().tolist() for case in found.cases] == [[0], [1], [2]]


def test_a_file_that_has_lost_a_phase_since_it_was_found_is_refused(tmp_path):
    path = save_cine(tmp_path / "a.nii.gz")
    case = discover(tmp_path, fourth_axis="phases").cases[2]
    save_cine(path, phases=2)
    with pytest.raises(GrataError, match=r"Case 'a-CardiacPhase03' \(image\) is phase 3, but its file has 2 phases"):
        TAKE(LOAD(case))
