"""``st adapter`` on files that a family wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from st.model.files.adapter_file import read_adapter_file, write_adapter_file
from st.testing import CliResult
from st.testing.runs import TINY

FAMILY = f"{TINY}:TinyFamily"
Cli = Callable[..., CliResult]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Two adapters of one model, as another program names them: alpha beside each layer."""
    written = []
    for seed, name in enumerate(("a", "b")):
        draws = torch.Generator().manual_seed(seed)
        tensors = {}
        for stem in ("transformer.blocks.0.attend.to_q", "transformer.blocks.1.attend.to_q"):
            tensors[f"{stem}.lora_A.weight"] = torch.randn(4, 8, generator=draws)
            tensors[f"{stem}.lora_B.weight"] = torch.randn(8, 4, generator=draws)
            tensors[f"{stem}.alpha"] = torch.tensor(2.0)
        write_adapter_file(tmp_path / f"{name}.safetensors", tensors, {"ss_network_dim": "4"})
        written.append(tmp_path / f"{name}.safetensors")
    return written[0], written[1]


def test_inspect_says_what_is_inside(files: tuple[Path, Path], st_cli: Cli) -> None:
    result = st_cli("adapter", "inspect", files[0])

    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0].startswith(f"{files[0]}: peft names, 2 layers, 128 weights")
    assert {"precision  float32", "rank       4", "scale      0.5", "ss_network_dim = 4"} <= set(lines)


def test_convert_writes_a_layout_of_the_family(files: tuple[Path, Path], tmp_path: Path, st_cli: Cli) -> None:
    out = tmp_path / "out.safetensors"

    result = st_cli("adapter", "convert", files[0], "--plugins", FAMILY, "--to", "diffusers", out)

    assert result.code == 0, result.err
    tensors, metadata = read_adapter_file(out)
    before = read_adapter_file(files[0])[0]
    assert set(tensors) == {name for name in before if not name.endswith(".alpha")}
    halves = {"lora_A": 1.0, "lora_B": 0.5}
    assert all(torch.equal(one, halves[name.split(".")[-2]] * before[name]) for name, one in tensors.items())
    assert metadata["ss_network_dim"] == "4"
    assert '"transformer.lora_alpha": 4' in metadata["lora_adapter_metadata"]


def test_an_unknown_layout_is_one_clear_error(files: tuple[Path, Path], tmp_path: Path, st_cli: Cli) -> None:
    result = st_cli("adapter", "convert", files[0], "--plugins", FAMILY, "--to", "koya", tmp_path / "out.safetensors")

    assert result.code == 1
    assert result.err == "Error: --to koya: this family writes diffusers.\n"


def test_merge_resize_and_diff(files: tuple[Path, Path], tmp_path: Path, st_cli: Cli) -> None:
    merged, smaller = tmp_path / "merged.safetensors", tmp_path / "smaller.safetensors"

    results = [
        st_cli("adapter", "merge", *files, merged, "--weights", "1,0"),
        st_cli("adapter", "resize", merged, smaller, "--rank", "4"),
        st_cli("adapter", "diff", files[0], smaller),
        st_cli("adapter", "diff", *files),
    ]

    assert [result.code for result in results] == [0, 0, 0, 0], results
    assert results[0].out == f"wrote {merged}: 2 layers, rank 8\n"
    assert results[1].out == f"wrote {smaller}: 2 layers keep 100.0% of their strength, 100.0% the least\n"
    assert results[2].out == "2 of 2 layers that both have are the same\n"
    assert results[3].out.endswith("0 of 2 layers that both have are the same\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("merge", "A", "B", "new.safetensors", "--weights", "1"), "--weights 1: 1 weights for 2 files."),
        (("merge", "A", "B", "new.safetensors", "--weights", "1,x"), "--weights 1,x: these are not numbers."),
        (("resize", "A", "B", "--rank", "2"), "exists already."),
        (("resize", "A", "new.bin", "--rank", "2"), "is not named .safetensors."),
        (("inspect", "old.pt"), "is a pickle, which can run any program when it is opened"),
    ],
)
def test_mistakes_are_one_clear_error(
    files: tuple[Path, Path], tmp_path: Path, st_cli: Cli, arguments: tuple[str, ...], message: str
) -> None:
    named = {"A": files[0], "B": files[1]}
    placed = [named.get(one, tmp_path / one if "." in one else one) for one in arguments]

    result = st_cli("adapter", *placed)

    assert result.code == 1
    assert message in result.err
