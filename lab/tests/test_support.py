"""What people see when something fails, files, and float32."""

import errno
import hashlib
import os

import numpy as np
import pytest
import torch
from lab_commands import outcome
from torch import nn

from lab import networks, support
from lab.support import UserError

TORCH_MEMORY = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
ENDS = {  # what a command raises: its exit code and all that it writes
    "the user's": (UserError("no such run: give another"), 2, "error: no such run: give another\n"),
    "Ctrl-C": (KeyboardInterrupt(), 130, "interrupted\n"),
    "a full disk": (
        OSError(errno.ENOSPC, "No space left", "out/a.npz"),
        2,
        "error: out/a.npz: No space left\n",
    ),
    "memory": (MemoryError(), 2, "error: out of memory: free some, and start the command again\n"),
    "memory of torch": (RuntimeError(TORCH_MEMORY), 2, "error: out of memory: free some, and start"),
    "memory of a GPU": (
        RuntimeError("CUDA out of memory. Tried\nto"),
        2,
        "error: out of memory: free some, and",
    ),
    "lines and colours": (UserError("a\n\tb \x1b[31mc"), 2, "error: a b ?[31mc\n"),
}


@pytest.mark.parametrize("case", ENDS)
def test_a_command_ends_in_one_line(case, capsys):
    error, code, line = ENDS[case]

    def main(_):
        raise error

    ended, text = outcome(capsys, main, [])
    assert ended == code and text.startswith(line) and text.count("\n") == 1


def test_a_bug_shows_where_it_is():
    with pytest.raises(RuntimeError, match="a bug"):
        support.run_main(lambda: (_ for _ in ()).throw(RuntimeError("a bug")))


def test_a_long_text_keeps_its_beginning_and_its_end():
    text = support.one_line("begin " + 1000 * "x " + "end")
    assert len(text) <= 300 and text.startswith("begin x") and text.endswith("x end")
    assert (
        support.one_line(KeyError("epoch")) == "KeyError: 'epoch'"
        and support.one_line(OSError()) == "OSError"
    )


def test_reading_names_the_file_once_and_hides_no_lack_of_memory():
    def failing(error):
        with support.reading("a.npz", "answers"):
            raise error

    with pytest.raises(UserError, match=r"^a.npz cannot be used as answers: KeyError: 'y'$"):
        failing(KeyError("y"))
    with pytest.raises(UserError, match=r"^b.csv is empty$"):
        failing(UserError("b.csv is empty"))
    for error in (MemoryError(), RuntimeError(TORCH_MEMORY)):
        with pytest.raises(type(error)):
            failing(error)


@pytest.mark.parametrize("error", [ValueError("no run"), OSError("no run")])
def test_what_the_core_refuses_is_the_users(error):
    with pytest.raises(UserError, match=r"^no run$"), support.core():
        raise error


def test_arrays_come_back_as_they_were(tmp_path):
    file, content = tmp_path / "a.npz", {"ints": torch.arange(3), "names": ["a", "bc"], "text": "d"}
    digest = support.write_arrays(file, content | {"half": torch.tensor([0.5, 2]).half()})
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()
    with np.load(file) as stored:
        assert stored["half"].dtype == np.float16 and stored["names"].tolist() == ["a", "bc"]
    arrays = support.read_arrays(file, "arrays")
    torch.testing.assert_close(arrays.pop("half"), torch.tensor([0.5, 2]))  # float32
    assert torch.equal(arrays.pop("ints"), content["ints"])
    assert arrays == {"names": ["a", "bc"], "text": "d"}


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def test_arrays_with_code_in_them_are_refused_and_no_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", names=np.array([Evil()], dtype=object))
    with pytest.raises(UserError, match=r"a\.npz cannot be used as arrays"):
        support.read_arrays(tmp_path / "a.npz", "arrays")
    torch.save({"weight": torch.zeros(1), "more": Evil()}, "a.pt")
    with pytest.raises(ValueError):
        networks.read_tensors(tmp_path / "a.pt")
    assert not (tmp_path / "evil").exists()


def test_weights_with_a_wrong_bit_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "a.pt")
    content = bytearray((tmp_path / "a.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match="it is damaged, the checksum of"):
        networks.read_tensors(tmp_path / "a.pt")


def test_numbers_are_of_float32_and_settings_of_the_caller_stay():
    cudnn, layer, x = torch.backends.cudnn, nn.Linear(9, 9), torch.rand(4, 9)
    expected = x @ layer.weight.T + layer.bias
    with (
        cudnn.flags(enabled=True, benchmark=True, deterministic=False),
        torch.autocast("cpu", torch.bfloat16),
    ):
        with support.full_float32("cpu"):
            assert cudnn.deterministic and not cudnn.benchmark
            torch.testing.assert_close(layer(x), expected)
        assert not cudnn.deterministic and cudnn.benchmark
        assert layer(x).dtype == torch.bfloat16
