"""Make explore.html, the page that one plays with, from the files of a run folder and the test images.

A template is a section. It sets `claim`, what the section says in one sentence with at most one number,
`below`, the interval of that number, and `question`, what a class is asked before it sees them. All texts are
escaped, and a missing value is an error. Nothing is measured here.
"""

import ast
import functools
import json
import re
from pathlib import Path
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from torch import Tensor

from lab import results
from lab.explore import script_data, story
from lab.explore.drawing import SIDE, in_words, interval, percent, points, reduced, styled
from lab.support import UserError
from report import plain
from train import write

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
SECTIONS = {  # id: how the navigation calls it
    "mistakes": "Mistakes",
    "maps": "Heat maps",
    "corruptions": "Corruptions",
    "confidence": "Confidence",
    "unlabelled": "Without labels",
    "attacks": "Attacks",
    "accuracy": "Accuracy",
}
SCRIPTS = ("page.js", "viewers.js", "browser.js", "game.js", "votes.js")


@functools.cache
def glossary() -> dict[str, str]:
    """Return what the words of docs/exercises.md mean, {word in small letters: meaning}."""
    text = (ROOT / "docs" / "exercises.md").read_text(encoding="utf-8").split("## Glossary")[1]
    entries = re.findall(r"^- \*\*(.+?):\*\* (.+?)(?=^- |\Z)", text, re.MULTILINE | re.DOTALL)
    return {word.lower(): " ".join(meaning.split()) for word, meaning in entries}


def mistakes_at(**wanted: str) -> str:
    """Return the address of the mistakes that fit, such as true="otter", predicted="all fish"."""
    return f"#{urlencode(wanted)}"


@functools.cache
def source(name: str) -> dict:
    """Return the `path` of a function such as "metrics.accuracy", its first `line`, and its source, `text`.

    They are read from the file: nothing is imported to be quoted.
    """
    module, _, function = name.rpartition(".")
    path = Path(*module.split(".")).with_suffix(".py")
    text = (ROOT / path).read_text(encoding="utf-8")
    (node,) = (part for part in ast.parse(text).body if getattr(part, "name", None) == function)
    return {"path": path.as_posix(), "line": node.lineno, "text": ast.get_source_segment(text, node)}


def make_templates() -> Environment:
    """Return the Jinja2 environment of the templates in this folder."""
    loader = FileSystemLoader(FOLDER)
    templates = Environment(loader=loader, undefined=StrictUndefined, autoescape=True, lstrip_blocks=True)
    for function in (percent, interval, in_words, plain, points):
        templates.filters[function.__name__] = function
    templates.filters["grouped"] = "{:,}".format
    templates.globals |= {"source": source, "mistakes_at": mistakes_at, "glossary": glossary()}
    return templates


def command_of_stress(out: Path) -> str:
    """Return the command that tests the network whose results lie in the folder."""
    run = out.name if out.is_absolute() else out.as_posix()
    if (out / "checkpoints" / "best.pt").is_file():
        return f"python -m lab.stress --run {run}"
    return f"python -m lab.stress --out {run}, with what lab.examine was told about the network"


def context_of(
    numbers: dict, answers: dict, evidence: dict, stress: dict | None, images: Tensor | None
) -> dict:
    """Return what the templates show of the files of a folder, see story.py."""
    shown = None if images is None else reduced(images)
    context = {"n": numbers, "class_names": answers["class_names"]}
    context |= story.game(answers, evidence, shown)
    context |= story.mistakes(numbers, answers, evidence, shown)
    context |= story.maps(numbers, answers, evidence, shown)
    context |= story.stress_tests(answers, stress, images)
    context |= story.confidence(numbers, answers, stress)
    context |= story.unlabelled(stress)
    return context | story.matrix(answers) | story.classes(numbers, answers)


@styled()
def write_explore(out: Path, images: Tensor | None) -> None:
    """Write explore.html into the run folder `out`, of what it holds.

    What is not of the same predictions is left out with a note, and so is a section that has nothing to say.
    """
    numbers, answers = results.read_report(out)
    reasons, evidence = results.read_reasons(out)
    if reasons is None:
        raise UserError(f"there are no reasons in {out}: run lab.examine without --page")
    numbers, evidence = numbers | reasons, evidence or {}
    stress = results.read_stress(out, {key: numbers.get(key) for key in ("network_sha256", "test_sha256")})
    if stress is not None and "summary" not in stress:
        print(f"note     {out / 'stress.json'} is not finished and left out: run lab.stress again")
        stress = None
    context = context_of(numbers, answers, evidence, stress, images)
    context["stress_command"] = command_of_stress(out)
    templates, sections = make_templates(), []
    for name, title in SECTIONS.items():
        module = templates.get_template(f"{name}.html").make_module(context)
        if module.claim.strip():
            section = {part: getattr(module, part, "") for part in ("claim", "below", "question", "computed")}
            sections.append(section | {"id": name, "title": title, "html": Markup(module)})
    side = None if images is None else min(SIDE, images.shape[-1])
    data = script_data.data_for_script(numbers, answers, evidence, stress, side)
    page = templates.get_template("explore.html").render(
        context,
        sections=sections,
        style=Markup((FOLDER / "explore.css").read_text(encoding="utf-8")),
        script=Markup("".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)),
        # With this escape no name can end the script element; JSON.parse reads it as the sign itself.
        data=Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")),
    )
    write(out / "explore.html", page + "\n")
