"""The settings of a dataclass as options of a command."""

import argparse
import dataclasses
from typing import Any, get_args

from support.console import option
from support.errors import UserError


def setting(default: Any, about: str, low: Any = None, high: Any = None, **options: Any) -> Any:
    """Return a field of a dataclass, `lr: float = setting(0.15, "peak rate", low=0, high=1)`.

    The option, its help and its check follow from the field. Its type is int, float, str or bool, or one of
    these `| None`. The range includes low and high. `options` go to argparse, such as choices.
    """
    metadata = {"about": about, "low": low, "high": high, "options": options}
    return dataclasses.field(default=default, metadata=metadata)


def add_settings(parser: argparse.ArgumentParser, settings: type, presets: dict | None = None) -> None:
    """Add an option for each field of the dataclass `settings`, and for a bool also its opposite, --no-...

    parse_args returns only the options that were typed. The help names the default of the dataclass, and the
    defaults in `presets`, {data set: {field: value}}.
    """
    for field in dataclasses.fields(settings):
        metadata = field.metadata
        notes = []
        if metadata["low"] is not None:
            notes.append(f"{metadata['low']:.10g} to {metadata['high']:.10g}")
        if field.default is not None:
            notes.append(f"default: {field.default}")
        for dataset, preset in (presets or {}).items():
            if preset.get(field.name) is not None:
                notes.append(f"{dataset}: {preset[field.name]}")
        text = f"{metadata['about']} ({', '.join(notes)})" if notes else metadata["about"]
        kind = (get_args(field.type) or (field.type,))[0]  # int, also for int | None
        if kind is bool:
            how = {"action": argparse.BooleanOptionalAction}
        else:
            how = {"type": kind} | metadata["options"]
        parser.add_argument(option(field.name), help=text, **how).default = argparse.SUPPRESS


def expect(holds: bool, name: str, value: object, expected: str) -> None:
    """Raise UserError, such as "--epochs 0: expected a number from 1 to 9", unless the condition holds."""
    if not holds:
        raise UserError(f"{option(name)} {value}: expected {expected}")


def check_ranges(settings: Any) -> None:
    """Raise UserError if a value of the dataclass object lies outside its field's range; None is allowed."""
    for field in dataclasses.fields(settings):
        value, low, high = getattr(settings, field.name), field.metadata["low"], field.metadata["high"]
        if low is not None and value is not None:
            expect(low <= value <= high, field.name, value, f"a number from {low} to {high}")
