"""Files, folders and options from outside: each is refused in one line, and nothing is left behind."""

import pytest
from processes import assert_one_line, outcome

import gradcam
import report
import stress
import train

# ---------------------------------------------------------------------------------------------------------
# One line, however long the input


LONG = {
    "train: a device": (train, "--device", "x" * 100_000),
    "train: a choice": (train, "--dataset", "x" * 100_000),
    "train: sizes": (train, "--image-sizes", "9" * 3000),
    "train: a number": (train, "--epochs", "9" * 3000),
    "train: lines": (train, "--out", "a\nb\x1b[31m\r" * 40),
    "train: an address": (train, "--data-url", "ftp://" + "x" * 5000),
    "report: a run": (report, "--run", "x\n" * 2000),
    "report: a checkpoint": (report, "--checkpoint", "x\n" * 2000),
    "report: an unknown option": (report, "--" + "x" * 5000, "1"),
    "stress: a run": (stress, "--run", "x" * 5000),
    "gradcam: a picture": (gradcam, "x\n" * 2000, "--layer=x"),
    "gradcam: an output": (gradcam, "x.png", "--output=" + "y\n" * 2000),
}


@pytest.mark.parametrize("case", LONG)
def test_what_is_printed_of_long_input_is_cut_and_printable(case, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module, *argv = LONG[case]
    code, err = outcome(capsys, module.main, argv)
    assert_one_line(code, err, "error: ")
    assert len(err) < 320 and err[:-1].isprintable()
