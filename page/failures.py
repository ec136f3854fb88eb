"""The most confident mistakes as files: pictures and failures.csv in failures/, and gradcam/."""

import re
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from gradcam import draw, overlay, to_heatmap
from page import plots
from page.pictures import plain, png
from support.files import whole_file, write_csv

NUM_FAILURES = 20
LEAST = 256  # pixels, the side of a picture, where whole pixels make it


def describe(answers: dict, evidence: dict) -> list[dict]:
    """Return the rows of failures.csv for the first of the mistakes; see docs/formats.md of the arrays."""
    rows, names = [], answers["class_names"]
    for place, i in enumerate(evidence["mistakes"][:NUM_FAILURES].tolist()):
        true, predicted = answers["y_true"][i].item(), answers["y_pred"][i].item()
        copy = answers["training_labels"][i].item() if "training_labels" in answers else -1
        stem = re.sub(r"[^\w.]", "-", f"{place + 1:02d}_{names[true]}_as_{names[predicted]}")[:100]
        rows.append(
            {
                "rank": place + 1,
                "test_index": i,
                "file_name": answers["filenames"][i],
                "true_class": names[true],
                "predicted_class": names[predicted],
                "probability_predicted": round(evidence["answer_probabilities"][0, place, 0].item(), 6),
                "probability_true": round(evidence["probability_true"][place].item(), 6),
                "label_in_training": "" if copy < 0 else names[copy],
                "picture": f"failures/{stem}.png",
            }
        )
    return rows


def write(out: Path, rows: list[dict], images: Tensor | None, maps: Tensor | None, layer: str | None) -> None:
    """Write the rows and their pictures in place of those of an earlier report, which may have had more.

    images uint8 [N, 3, S, S]: the test images, or None, which leaves the table. maps float [m, h, w]: of the
    predicted class rather than the true one, see GradCAM.pairs, those of the rows first; their negative part
    marks what weighs for the true class.
    """
    for folder in ("failures", "gradcam"):
        for earlier in (out / folder).glob("[0-9][0-9]_*_as_*.png"):
            earlier.unlink()
    (out / "failures" / "failures.csv").unlink(missing_ok=True)
    if not rows:
        return
    if images is None:
        write_csv(out / "failures" / "failures.csv", [row | {"picture": ""} for row in rows])
        return
    shown = images[[row["test_index"] for row in rows]]
    pictures = F.interpolate(shown, scale_factor=max(1, LEAST // shown.shape[-1]))  # larger, not blurred
    for row, picture in zip(rows, pictures, strict=True):
        with whole_file(out / row["picture"]) as temporary:
            temporary.write_bytes(png(picture))
    overlays = {}
    if maps is not None:
        for sign, kind in ((1, "predicted"), (-1, "true")):
            heatmaps = to_heatmap((sign * maps[: len(rows)]).relu(), pictures.shape[-1])
            overlays[kind] = overlay(pictures / 255, heatmaps)
        for place, row in enumerate(rows):
            row["gradcam"] = row["picture"].replace("failures/", "gradcam/", 1)
            panels = [(row["file_name"], pictures[place])]
            for kind, laid_over in overlays.items():
                probability = f"{kind}, {100 * row[f'probability_{kind}']:.1f} %"
                title = f"for {plain(row[f'{kind}_class'])} rather than the other\n({probability})"
                panels.append((title, laid_over[place]))
            plots.save_png(draw(panels, f"Grad-CAM at {layer}"), out / row["gradcam"])
    write_csv(out / "failures" / "failures.csv", rows)
