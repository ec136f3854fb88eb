"""The most confident mistakes as files: pictures and failures.csv in failures/, their maps in gradcam/."""

import re
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from gradcam import draw, overlay, to_heatmap
from page import plots
from page.embed import encoded, plain
from support.files import whole_file, write_csv

NUM_FAILURES = 24
LEAST = 256  # pixels: small pictures are enlarged by a whole factor to at most this side


def describe(arrays: dict) -> list[dict]:
    """Return the rows of failures.csv from predictions.npz, see docs/formats.md."""
    rows, names = [], arrays["class_names"]
    for place, i in enumerate(arrays["mistakes"][:NUM_FAILURES].tolist()):
        true, predicted = arrays["y_true"][i].item(), arrays["y_pred"][i].item()
        copy = arrays["training_labels"][i].item() if "training_labels" in arrays else -1
        stem = re.sub(r"[^\w.]", "-", f"{place + 1:02d}_{names[true]}_as_{names[predicted]}")[:100]
        rows.append(
            {
                "rank": place + 1,
                "test_index": i,
                "file_name": arrays["filenames"][i],
                "true_class": names[true],
                "predicted_class": names[predicted],
                "probability_predicted": round(arrays["confidence"][i].item(), 6),
                "probability_true": round(arrays["probabilities"][i, true].item(), 6),
                "label_in_training": "" if copy < 0 else names[copy],
                "picture": f"failures/{stem}.png",
            }
        )
    return rows


def write(out: Path, rows: list[dict], images: Tensor | None, arrays: dict, layer: str | None) -> None:
    """Write the rows and their pictures, and remove the pictures of an earlier report.

    images uint8 [N, 3, S, S]: the test images; with None only the table is written. arrays: predictions.npz,
    if there are maps with those of the rows, see report.explain_mistakes.
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
            temporary.write_bytes(encoded(picture))
    if "maps_predicted" in arrays:
        overlays = {}
        for kind in ("predicted", "true"):
            heatmaps = to_heatmap(arrays[f"maps_{kind}"][: len(rows)], pictures.shape[-1])
            overlays[kind] = overlay(pictures / 255, heatmaps)
        for place, row in enumerate(rows):
            row["gradcam"] = row["picture"].replace("failures/", "gradcam/", 1)
            panels = [(row["file_name"], pictures[place])]
            for kind, pixels in overlays.items():
                probability = f"{100 * row[f'probability_{kind}']:.1f} %"
                panels.append((f"for {plain(row[f'{kind}_class'])}\n({kind}, {probability})", pixels[place]))
            plots.save_png(draw(panels, f"Grad-CAM at {layer}"), out / row["gradcam"])
    write_csv(out / "failures" / "failures.csv", rows)
