"""Make explore.html, the page that one plays with, from the files of a run folder and the test images.

A template is a section. It sets `claim`, what the section says in one sentence, and shows what the sentence
stands on. All texts are escaped, and a missing value is an error. Nothing is measured here.
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
from lab.explore.drawing import in_words, interval, percent, reduced, styled
from lab.support import UserError
from report import plain
from train import write

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
SECTIONS = {  # id: how the navigation calls it, and what leads to it at the end of the section before
    "accuracy": ("Accuracy", ""),
    "mistakes": ("Confusions", "The rest is wrong: what does it take for what?"),
    "maps": ("Heat maps", "Naming a confusion does not explain it: can a heat map show why?"),
    "confidence": (
        "Confidence",
        "With or without a reason a warning would help: does it know when it errs?",
    ),
    "corruptions": ("Corruptions", "The world changes: how much stays right?"),
    "attacks": ("Attacks", "Noise and fog do not aim: what happens when somebody wants it wrong?"),
}


def points(row: dict, digits: int = 1, unit: str = " points") -> str:
    """Return a difference with its interval as "+1.2 points (+0.3 to +2.1)"."""
    value, low, high = (f"{100 * row[key]:+.{digits}f}" for key in ("value", "low", "high"))
    return f"{value}{unit} ({low} to {high})".replace("-", "\N{MINUS SIGN}")


@functools.cache
def glossary() -> dict[str, str]:
    """Return what the words of docs/exercises.md mean, {word in small letters: meaning}."""
    text = (ROOT / "docs" / "exercises.md").read_text(encoding="utf-8").split("## Glossary")[1]
    entries = re.findall(r"^- \*\*(.+?):\*\* (.+?)(?=^- |\Z)", text, re.MULTILINE | re.DOTALL)
    return {word.lower(): " ".join(meaning.split()) for word, meaning in entries}


def mistakes_at(**wanted: str) -> str:
    """Return the address of the mistakes that fit, such as true="otter", predicted="seal"."""
    return f"#{urlencode(wanted)}"


@functools.cache
def source(name: str) -> dict:
    """Return where a function, class or module such as "metrics.accuracy" stands, and its source.

    `path`, the first `line` and `text` are read from the file: nothing is imported to be quoted.
    """
    parts, depth = name.split("."), 1
    while not (ROOT.joinpath(*parts[:depth])).with_suffix(".py").is_file():
        depth += 1
    path = Path(*parts[:depth]).with_suffix(".py")
    text = (ROOT / path).read_text(encoding="utf-8")
    node, first = ast.parse(text), 1
    for part in parts[depth:]:
        (node,) = (inner for inner in node.body if getattr(inner, "name", None) == part)
    lines = text.splitlines()
    if parts[depth:]:
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        lines = lines[first - 1 : node.end_lineno]
    return {"path": path.as_posix(), "line": first, "text": "\n".join(lines).rstrip()}


def make_templates() -> Environment:
    """Return the Jinja2 environment of the templates in this folder."""
    loader = FileSystemLoader(FOLDER)
    templates = Environment(loader=loader, undefined=StrictUndefined, autoescape=True, lstrip_blocks=True)
    for function in (percent, interval, in_words, plain, points):
        templates.filters[function.__name__] = function
    templates.filters["grouped"] = "{:,}".format
    templates.globals |= {"source": source, "mistakes_at": mistakes_at, "glossary": glossary()}
    return templates


@styled()
def write_explore(out: Path, images: Tensor | None) -> None:
    """Write explore.html into the run folder `out`, of what it holds.

    What is not of the same predictions is left out with a note, and so is a section that has nothing to say.
    """
    numbers, arrays = results.read_report(out)
    reasons, evidence = results.read_reasons(out)
    if reasons is None:
        raise UserError(f"there are no reasons in {out}: run lab.examine without --page")
    numbers, evidence = numbers | reasons, evidence or {}
    stress = results.read_stress(out, {key: numbers.get(key) for key in ("network_sha256", "test_sha256")})
    shown = None if images is None else reduced(images)
    context = {"n": numbers, "class_names": arrays["class_names"], "folder": out.name}
    context |= story.game(arrays, evidence, shown)
    context |= story.matrix(arrays)
    context |= story.confusions(numbers, arrays, evidence, shown)
    context |= story.maps(numbers, arrays, evidence, shown)
    context |= story.confidence(numbers, stress)
    context |= story.stress_tests(arrays, stress, images)
    templates, sections = make_templates(), []
    for name, (title, lead) in SECTIONS.items():
        module = templates.get_template(f"{name}.html").make_module(context)
        claim = module.claim.strip()  # escaped by the template, like all of it
        if claim:
            section = {"id": name, "title": title, "lead": lead, "claim": claim, "html": Markup(module)}
            sections.append(section | {"question": getattr(module, "question", None)})
    side = None if images is None else shown.shape[-1]
    data = script_data.data_for_script(numbers, arrays, evidence, stress, side)
    page = templates.get_template("explore.html").render(
        context,
        sections=sections,
        style=Markup((FOLDER / "explore.css").read_text(encoding="utf-8")),
        script=Markup(
            "".join((FOLDER / name).read_text(encoding="utf-8") for name in ("page.js", "game.js"))
        ),
        # With this escape no name can end the script element; JSON.parse reads it as the sign itself.
        data=Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")),
    )
    write(out / "explore.html", page + "\n")
