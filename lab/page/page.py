"""Make both pages of a folder of results anew, from its files: report.html and explore.html.

    python -m lab.page runs/cifar100

No network is run, and nothing that a file names. The pictures are those in evidence.npz. A template in
explore/ that SECTIONS names is a section of explore.html: it sets `claim`, what it says in one sentence, and
`below`, the base and the interval of its number. All texts are escaped. What the templates and the script
know of each section is in sections.py, robustness.py and confidence.py beside it.
"""

import argparse
import json
from pathlib import Path
from urllib.parse import urlencode

import matplotlib
import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from torch import Tensor

import report
from data import printable
from lab.answers import near_chance
from lab.folder import read_reasons, read_report, read_stress
from lab.intervals import in_points
from lab.options import run
from lab.page import confidence, robustness, sections
from lab.page.figures import base64_of, corruption, interval, percent
from lab.pictures import may_be_drawn, people_among
from train import command_line, write

TEMPLATES = Path(__file__).resolve().parent / "explore"
SECTIONS = {  # id, the name of the template: how the navigation calls it
    "ending": "In short",
    "corruptions": "Corruptions",
    "attacks": "Attacks",
    "confidence": "Confidence",
    "maps": "Maps",
    "mistakes": "Mistakes",
    "where": "Which pictures",
}
SCRIPTS = ("page.js", "viewers.js", "browser.js")


# ---- Pictures ----------------------------------------------------------------------------------------------


def shown_images(numbers: dict, arrays: dict, evidence: dict) -> Tensor:
    """Return which test images both pages show, int64 [k], ascending: of these evidence.npz holds pictures.

    numbers, arrays and evidence are metrics.json, predictions.npz and what evidence.npz holds without them.
    """
    mistakes, names = arrays["mistakes"], arrays["class_names"]
    some = [arrays["explained"], evidence["mistakes"]]
    if "examples" in evidence:
        some.append(evidence["examples"])
    if "slice_examples" in evidence:
        some.append(evidence["slice_examples"][evidence["slice_examples"] >= 0])
    for pair in numbers["most_confused_pairs"]:
        of_true = arrays["y_true"][mistakes] == names.index(pair["true"])
        of_pair = of_true & (arrays["y_pred"][mistakes] == names.index(pair["predicted"]))
        some.append(mistakes[of_pair][:3])
    first = [torch.nonzero(arrays["y_true"] == c)[0, 0] for c in arrays["y_true"].unique()]
    some.append(report.without_people(arrays, torch.stack(first))[:100])  # of samples.png
    return torch.cat(some).unique()


def stored_images(count: int, evidence: dict) -> Tensor | None:
    """Return the pictures in evidence.npz at their places among `count` test images, None if there are none.

    The result is uint8 [N, 3, s, s]; the other images are black, and no page shows them.
    """
    if "pictures" not in evidence:
        return None
    # NumPy leaves memory alone until it is written to, so that the black images need none.
    images = torch.from_numpy(np.zeros((count, *evidence["pictures"].shape[1:]), dtype=np.uint8))
    images[evidence["picture_index"]] = evidence["pictures"]
    return images


def set_aside(arrays: dict, stored: Tensor, images: Tensor) -> None:
    """Make those of the `stored` images, int64 [k], grey that have people as label or answer.

    So no section can show them. Where all classes are of people nothing is set aside, see people_among.
    """
    images[stored[~may_be_drawn(arrays, stored)]] = 128


# ---- The pages ---------------------------------------------------------------------------------------------


def write_explore(out: Path) -> list[str]:
    """Write explore.html of a folder from its files; return notes on what they lack."""
    numbers, arrays = read_report(out)
    reasons, evidence = read_reasons(out)
    stress, note = read_stress(out, numbers)
    notes, n = [note] if note else [], numbers | reasons
    images = stored_images(len(arrays["y_true"]), evidence)
    people = people_among(arrays["class_names"])
    context = {"n": n | {"notes": [*n["notes"], *notes]}, "class_names": arrays["class_names"]}
    script = {
        "side": None if images is None else images.shape[-1],
        "classes": [report.plain(name) for name in arrays["class_names"]],
        "people": people.nonzero().flatten().tolist(),
        "inferno": base64_of(matplotlib.colormaps["inferno"](np.arange(256), bytes=True)[:, :3]),
    }
    for of_template, of_script in parts_of_sections(n, arrays, evidence, stress, images):
        context |= of_template
        script |= of_script
    write(out / "explore.html", render(context, script) + "\n")
    return notes


def parts_of_sections(
    n: dict, arrays: dict, evidence: dict, stress: dict | None, images: Tensor | None
) -> list[tuple[dict, dict]]:
    """Return of each section what its template shows and what the script knows, see sections.py."""
    stress = stress if stress is not None and "summary" in stress else None  # else it is not finished
    if images is not None:
        set_aside(arrays, evidence["picture_index"], images)
    shared = {"has_people": people_among(arrays["class_names"]).any().item()}
    shared |= {"stress": stress, "near_chance": near_chance(n)}
    shared["has_network"] = "size" in n["data"]  # else answers alone
    return [
        (shared, {}),
        robustness.hero(n, arrays, stress),
        sections.mistakes(n, arrays, evidence, images),
        sections.maps(n, arrays, evidence, images),
        robustness.corruptions(arrays, stress),
        confidence.confidence(n, arrays, stress),
        robustness.attacks(n, arrays, stress),
        sections.where(n, arrays, evidence, images),
        sections.ending(n, arrays, stress),
    ]


def render(context: dict, script: dict) -> str:
    """Return the page, of what the templates show and what the script knows."""
    templates, shown = make_templates(), []
    for name, title in SECTIONS.items():
        module = templates.get_template(f"{name}.html").make_module(context)
        if module.claim.strip():  # else the section has nothing to say
            parts = {part: getattr(module, part, "") for part in ("claim", "below")}
            shown.append(parts | {"id": name, "title": title, "html": Markup(module)})
    return templates.get_template("explore.html").render(
        context,
        sections=shown,
        style=Markup((TEMPLATES / "explore.css").read_text(encoding="utf-8")),
        script=Markup("".join((TEMPLATES / name).read_text(encoding="utf-8") for name in SCRIPTS)),
        # With this escape no name can end the script element; JSON.parse reads it as the sign itself.
        data=Markup(json.dumps(script, separators=(",", ":")).replace("<", "\\u003c")),
    )


def make_templates() -> Environment:
    """Return the Jinja2 environment of the templates."""
    folder = FileSystemLoader(TEMPLATES)
    templates = Environment(loader=folder, undefined=StrictUndefined, autoescape=True, lstrip_blocks=True)
    for function in (percent, interval, report.plain, corruption):
        templates.filters[function.__name__] = function
    templates.filters["grouped"] = "{:,}".format
    templates.filters["edge"] = lambda share: f"{100 * share:.3g}\N{NO-BREAK SPACE}%"  # as 93.3 %
    templates.filters["points"] = lambda row: in_points(row).replace("-", "\N{MINUS SIGN}")
    # The address of the mistakes that fit, such as true="otter", predicted="all fish".
    templates.globals["mistakes_at"] = lambda **wanted: f"#{urlencode(wanted)}"
    return templates


# ---- The command -------------------------------------------------------------------------------------------


def command(args: argparse.Namespace) -> None:
    """Write report.html and explore.html of a folder from its files; UserError without results."""
    numbers, arrays = read_report(args.folder)
    images = stored_images(len(arrays["y_true"]), read_reasons(args.folder)[1])
    linked = numbers | {"see_also": "explore.html"}
    for name, content in report.draw_report(linked, arrays, images).items():
        write(args.folder / name, content)
    notes = write_explore(args.folder)
    for note in notes:
        print(f"note     {printable(note)}")
    print(f"next     open {args.folder / 'explore.html'} in a browser")


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = command_line(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what lab.examine and lab.stress wrote")
    return run(parser, argv, command)
