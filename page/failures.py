"""The most confident mistakes as files: pictures and failures.csv in failures/, and gradcam/.

test is the test split, a data.Dataset.
"""

import re
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from gradcam import draw, overlay, to_heatmap
from page import plots
from page.pictures import plain, png
from running.files import whole_file, write_csv


def describe(
    test, misclassified: Tensor, probabilities: Tensor, training_labels: Tensor | None
) -> list[dict]:
    """Return the rows of failures.csv for the misclassified images, int64 [M].

    probabilities float32 [N, C]; training_labels int64 [N]: the label of the same pixels in the training set,
    -1 where they are not there, or None.
    """
    rows = []
    for rank, i in enumerate(misclassified.tolist(), start=1):
        true, predicted = test.labels[i].item(), probabilities[i].argmax().item()
        copy = -1 if training_labels is None else training_labels[i].item()
        names = f"{rank:02d}_{test.class_names[true]}_as_{test.class_names[predicted]}"
        stem = re.sub(r"[^\w.]", "-", names)[:100]
        rows.append(
            {
                "rank": rank,
                "test_index": i,
                "file_name": test.filenames[i],
                "true_class": test.class_names[true],
                "predicted_class": test.class_names[predicted],
                "probability_predicted": round(probabilities[i, predicted].item(), 6),
                "probability_true": round(probabilities[i, true].item(), 6),
                "label_in_training": "" if copy < 0 else test.class_names[copy],
                "picture": f"failures/{stem}.png",
            }
        )
    return rows


@plots.styled()
def write(out: Path, test, rows: list[dict], maps: Tensor | None, layer: str | None) -> None:
    """Write the rows and their pictures in place of those of an earlier report, which may have had more.

    maps float [M, h, w]: of the predicted class rather than the true one, see GradCAM.pair, those of the rows
    first; their negative part speaks for the true class.
    """
    for folder in ("failures", "gradcam"):
        for earlier in (out / folder).glob("[0-9][0-9]_*_as_*.png"):
            earlier.unlink()
    (out / "failures" / "failures.csv").unlink(missing_ok=True)
    if not rows:
        return
    images = test.images[[row["test_index"] for row in rows]]
    pictures = F.interpolate(images, scale_factor=8)  # larger, not blurred
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
