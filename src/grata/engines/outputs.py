"""Outputs of each case: its segmentation, its figure and its scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events

from .._version import __version__
from ..console import say_beside_bar
from ..data import write_dicom_seg, write_itk, write_nifti, write_png
from ..data.phases import is_unlabelled
from ..errors import GrataError
from ..files import FIGURES, SEGMENTATIONS, expanded, is_file_name, on_disk, remove_file, shortened
from ..quality import Judgement, verdict_in_words
from ..report import case_scores, case_volumes, contact_sheet

__all__ = ["EMPTIED", "OutputHandler"]

EMPTIED = "_emptied"
"""End of the key, beside that of a label map, of the structures that cleaning took away as wholes."""

_ENDINGS = {"nifti": ".nii.gz", "mha": ".mha", "nrrd": ".nrrd"}


class OutputHandler:
    """A handler that writes the outputs of every case as soon as it is predicted, each file whole or not at all.

    It writes into ``output_dir``:

    - ``segmentations/<case>.nii.gz`` in the input's own space, or ``.mha`` or ``.nrrd``;
    - for a DICOM series also ``segmentations/<case>.seg.dcm`` (DICOM SEG);
    - for a picture, instead of both, ``segmentations/<case>.png``, a palette PNG whose pixel values are the label
      values, of the picture's size after its EXIF orientation;
    - ``figures/<case>.png``.

    Labels are only compared with predictions; no method sees them.

    Args:
        cases: cases that :func:`grata.data.discover` found.
        output_dir: folder of the outputs.
        segments: meaning of the label values: for each segment ``value``, ``label`` and the codes that
            :func:`grata.data.write_dicom_seg` needs. A segment that contains others, as the optic disc contains the
            cup, lists their values in ``includes``; it is measured, scored and written to DICOM SEG with them. Label
            maps keep one value per pixel.
        variant: name of the method, in scores and figures.
        pred_key, source_key, label_key: keys of label maps ``(1, H, W[, D])`` in the input's space, after
            postprocessing.
        image_key: key of the image ``(C, H, W[, D])`` in the input's space, for the figure.
        scored: labels of the segments that the given label maps contain; None: all. Other segments are measured but
            not scored.
        output_format: format of the segmentations of volumes: ``nifti``, ``mha`` (MetaImage) or ``nrrd``.

    Attributes:
        scores: rows for :func:`grata.report.write_scores`, by case.
        volumes: rows for :func:`grata.report.write_volumes`, by case.
        judgements: what a guard says of the cases of an iteration, by their names, for the outputs to carry it; a run
            gives it. The segmentation of a case that is withheld is not written.

    Raises:
        GrataError: a segment is incomplete, has an unknown key or includes a value that no other segment has, or
            ``scored`` names a segment that does not exist; or there is no such ``output_format``.
    """

    def __init__(
        self,
        cases: Sequence[Mapping[str, Any]],
        output_dir: str | Path,
        segments: Sequence[Mapping[str, Any]],
        variant: str,
        pred_key: str = "pred",
        source_key: str = "source_pred",
        label_key: str = "label",
        image_key: str = "original",
        scored: Sequence[str] | None = None,
        output_format: str = "nifti",
    ) -> None:
        _check_segments(segments)
        if output_format not in _ENDINGS:
            raise GrataError(f"must be one of {', '.join(_ENDINGS)}, got {output_format!r}.", key="output_format")
        self.output_format = output_format
        self.cases = {case["case"]: case for case in cases}
        self.output_dir = expanded(output_dir)
        self.segments = segments
        self.class_names = {int(segment["value"]): str(segment["label"]) for segment in segments}
        self.includes = {int(segment["value"]): tuple(segment.get("includes", ())) for segment in segments}
        self.scored = _check_scored(scored, list(self.class_names.values()))
        self.variant = variant
        self.pred_key = pred_key
        self.source_key = source_key
        self.label_key = label_key
        self.image_key = image_key
        self.scores: dict[str, list[dict[str, Any]]] = {}
        self.volumes: dict[str, list[dict[str, Any]]] = {}
        self.judgements: Callable[[], Mapping[str, Judgement]] = dict

    def attach(self, engine: Engine) -> None:
        """Register the handler on ``ITERATION_COMPLETED``.

        Args:
            engine: ``monai.engines.SupervisedEvaluator`` that decollates its batches.
        """
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.write)

    def write(self, engine: Engine) -> None:
        """Write the outputs of the cases of this iteration."""
        batches: Any = engine.state.batch
        outputs: Any = engine.state.output
        judgements = self.judgements()
        for batch, output in zip(batches, outputs):
            for label in output.get(f"{self.pred_key}{EMPTIED}", ()):
                remark = f"the cleaning of label maps left nothing of {label}: see keep_largest, smallest"
                say_beside_bar(f"{batch['case']}: {remark}")
            self._write_case(self.cases[batch["case"]], {**batch, **output}, judgements.get(batch["case"]))

    def remove(self, case: str) -> None:
        """Remove all outputs of a case."""
        self.scores.pop(case, None)
        self.volumes.pop(case, None)
        for path in self.paths(case):
            remove_file(path)

    def paths(self, case: str) -> list[Path]:
        """Return the paths of all files that a case may have.

        Raises:
            GrataError: the name of the case would lead out of the folders of the outputs.
        """
        if not is_file_name(case):
            raise GrataError(
                f"must be a name for files, without folders and not too long, got {shortened(case)!r}. Rename the "
                "case.",
                key="case",
            )
        segmentations, figures = self.output_dir / SEGMENTATIONS, self.output_dir / FIGURES
        ends = (*_ENDINGS.values(), ".seg.dcm", ".png")
        return [on_disk(path) for path in (*(segmentations / f"{case}{end}" for end in ends), figures / f"{case}.png")]

    def _write_case(self, case: Mapping[str, Any], item: Mapping[str, Any], judgement: Judgement | None) -> None:
        image, prediction = item[self.image_key], _label_map(item[self.pred_key])
        source = item.get(self.source_key)
        maps = {} if source is None else {"source": _label_map(source)}
        maps[self.variant] = prediction
        label = _label(case, item, self.label_key)
        affine = np.asarray(image.affine, dtype=float)
        is_picture = case["format"] == "picture"
        spacing = None if is_picture else np.linalg.norm(affine[:-1, :-1], axis=0)[: prediction.ndim].tolist()

        withheld = judgement is not None and judgement.withheld
        if not withheld:
            self._write_segmentation(prediction, case, judgement)
        # what is not written has no place in the tables either
        measured = {name: label_map for name, label_map in maps.items() if not withheld or name == "source"}
        self._measure(case, measured, label, spacing)
        self._draw(case, image, maps, label, spacing or [1.0] * prediction.ndim, judgement)

    def _write_segmentation(self, prediction: np.ndarray, case: Mapping[str, Any], judgement: Judgement | None) -> None:
        segmentations = self.output_dir / SEGMENTATIONS
        segmentations.mkdir(parents=True, exist_ok=True)
        if case["format"] == "picture":
            write_png(prediction, case, segmentations / f"{case['case']}.png")
        else:
            write = write_nifti if self.output_format == "nifti" else write_itk
            write(prediction, case, segmentations / f"{case['case']}{_ENDINGS[self.output_format]}")
        if case["format"] == "dicom":
            algorithm = (f"grata {self.variant}", __version__)
            remark = "" if judgement is None else verdict_in_words(judgement)
            path = segmentations / f"{case['case']}.seg.dcm"
            write_dicom_seg(prediction, case, self.segments, path, algorithm=algorithm, remark=remark)

    def _measure(
        self,
        case: Mapping[str, Any],
        maps: Mapping[str, np.ndarray],
        label: np.ndarray | None,
        spacing: Sequence[float] | None,
    ) -> None:
        """Keep the rows of the tables of volumes and scores; without spacing, sizes are in pixels."""
        name, site = case["case"], case["site"]
        self.volumes[name] = [
            {"case": name, "site": site, "variant": variant, **row}
            for variant, label_map in maps.items()
            for row in case_volumes(label_map, self.class_names, spacing, self.includes)
        ]
        if label is None:
            return
        self.scores[name] = [
            {"case": name, "site": site, "variant": variant, **row}
            for variant, label_map in maps.items()
            for row in case_scores(label_map, label, self.class_names, spacing, self.includes)
            if row["class"] in self.scored
        ]

    def _draw(
        self,
        case: Mapping[str, Any],
        image: Any,
        maps: Mapping[str, np.ndarray],
        label: np.ndarray | None,
        spacing: Sequence[float],
        judgement: Judgement | None,
    ) -> None:
        figure = self.paths(case["case"])[-1]
        figure.parent.mkdir(parents=True, exist_ok=True)
        outlines = {"source" if variant == "source" else "adapted": value for variant, value in maps.items()}
        if label is not None:
            outlines["label"] = label
        pixels = image.as_tensor().float().cpu().numpy()
        colour = case["format"] == "picture" and len(pixels) == 3
        contact_sheet(
            np.moveaxis(pixels, 0, -1) if colour else pixels[0],
            outlines,
            figure,
            title=f"{case['case']} ({self.variant}){'' if judgement is None else ': ' + verdict_in_words(judgement)}",
            spacing=spacing,
            axcodes=nib.aff2axcodes(np.asarray(image.affine, dtype=float)) if pixels.ndim == 4 else None,
        )


def _check_segments(segments: Any) -> None:
    required, optional = {"value", "label", "category", "type"}, {"modifier", "anatomic_region", "includes", "range"}
    if not isinstance(segments, list | tuple) or not segments:
        raise GrataError(
            "give a list with an entry for each label value: value, label, category and type.", key="segments"
        )
    for index, segment in enumerate(segments):
        keys = set(segment) if isinstance(segment, Mapping) else set()
        if missing := sorted(required - keys):
            raise GrataError(
                f"{', '.join(missing)} is missing. Give value, label, category and type.", key=f"segments#{index}"
            )
        if unknown := sorted(keys - required - optional):
            known = ", ".join(sorted(required | optional))
            raise GrataError(f"there is no such key. The keys are {known}.", key=f"segments#{index}#{unknown[0]}")
    for index, segment in enumerate(segments):
        includes = segment.get("includes", [])
        others = sorted({int(other["value"]) for other in segments} - {int(segment["value"])})
        if not isinstance(includes, list | tuple) or any(value not in others for value in includes):
            raise GrataError(
                f"must be a list of the values of other segments ({', '.join(map(str, others))}), got {includes!r}.",
                key=f"segments#{index}#includes",
            )


def _check_scored(scored: Any, labels: list[str]) -> set[str]:
    if scored is None:
        return set(labels)
    if not isinstance(scored, list | tuple) or not scored or any(label not in labels for label in scored):
        raise GrataError(
            f"must be a list of labels of the segments ({', '.join(labels)}), got {scored!r}.", key="scored"
        )
    return set(scored)


def _label(case: Mapping[str, Any], item: Mapping[str, Any], key: str) -> np.ndarray | None:
    """Return the label map of a case; None where it has none."""
    label = _label_map(item[key]) if case.get("label") else None
    return None if label is None or is_unlabelled(case, label) else label


def _label_map(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor ``(1, H, W[, D])`` as an integer array ``(H, W[, D])``."""
    plain = tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor
    return plain[0].round().to(torch.int16).cpu().numpy()
