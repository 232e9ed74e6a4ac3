"""The adapter in whole runs: they resume bit for bit, and work with averages, recomputation and compiled blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lycoris import create_lycoris_from_weights

from st import Geometry
from st.model.inside.compiling import CompileOptions, compile_blocks
from st.testing import HookPluginTests, TinyFamily, TinyRun, example_batch, example_noised
from st.testing.runs import RUN_FILE, TINY, call_cli, write_photos
from st.train.reopening import open_run
from st_lycoris import LycorisAdapter, LycorisOptions
from st_lycoris.modules import quiet

CPU = torch.device("cpu")

LOKR = '[adapter]\nkind = "lycoris"\nrank = 2\nfactor = 4\n'
MIXED = (
    LOKR + '\n[adapter.layers]\nto_out = { algo = "loha", rank = 3, module_dropout = 0.3 }\nto_v = { algo = "ia3" }\n'
)


class TestPlugin(HookPluginTests):
    plugin = "lycoris"


class Runs:
    """Runs of TinyFamily with an [adapter] section of their own."""

    def __init__(self, root: Path) -> None:
        self.root, self.count = root, 0
        TinyFamily.tiny(root / "tiny")
        write_photos(root / "photos")

    def __call__(
        self, adapter: str, more: str = "", *, steps: int = 4, resume: TinyRun | None = None, precision: str = "fp32"
    ) -> TinyRun:
        self.count += 1
        directory = resume.directory if resume else self.root / f"run-{self.count}"
        file = self.root / f"run-{self.count}.toml"
        text = RUN_FILE.format(
            plugins=f'"{TINY}:TinyFamily", "lycoris"',
            output=json.dumps(str(directory)),
            checkpoint=json.dumps(str(self.root / "tiny")),
            photos=json.dumps(str(self.root / "photos")),
            steps=steps,
            batch=2,
            accumulate=1,
            text=more,
        )
        text = text.replace('[adapter]\nkind = "lora"\nrank = 4\n', adapter).replace('"fp32"', f'"{precision}"')
        file.write_text(text, encoding="utf-8")
        result = call_cli("train", file, *(["--resume"] if resume else []))
        assert result.code == 0, f"{result.err}\n{result.out}"
        return TinyRun(directory, result)

    def notes(self, run: TinyRun) -> list[str]:
        return [event["text"] for event in run.events() if event.get("kind") == "adapter"]


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def test_a_resumed_run_of_several_algorithms_ends_with_the_same_weights(runs: Runs) -> None:
    more = "[average]\ndecay = 0.9\n[recompute]\nevery = 1\n"
    straight = runs(MIXED, more)
    first = runs(MIXED, more, steps=2)
    resumed = runs(MIXED, more, steps=4, resume=first)

    assert resumed.weights() == straight.weights()
    assert "ia3 on 3 layers" in runs.notes(straight)[0]


def test_recomputation_changes_nothing(runs: Runs) -> None:
    dylora = '[adapter]\nkind = "lycoris"\nalgo = "dylora"\nrank = 4\nblock_size = 1\nmodule_dropout = 0.2\n'

    assert runs(dylora).weights() == runs(dylora, "[recompute]\nevery = 1\n").weights()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("settings", [{"rank": 2, "factor": 4}, {"algo": "diag-oft", "rank": 4}])
def test_compiled_blocks_are_one_graph_for_all(settings: dict[str, Any], tmp_path: Path) -> None:
    family = TinyFamily.tiny(tmp_path)
    batch = example_batch(family, Geometry(64, 64))
    noised = example_noised(family, batch)
    denoiser = family.load_denoiser(CPU, torch.float32)
    base = family.predict(denoiser, noised, batch)
    adapter = LycorisAdapter(LycorisOptions(**settings))
    adapter.attach(denoiser, family.adapter_targets())
    with torch.no_grad():
        for parameter in adapter.state(denoiser).values():
            parameter.normal_(std=0.1)
    expected = family.predict(denoiser, noised, batch)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_blocks(denoiser, family.blocks(), CompileOptions(blocks=True, backend="eager"))

    torch.testing.assert_close(family.predict(denoiser, noised, batch), expected, atol=1e-5, rtol=0)
    assert not torch._dynamo.utils.counters["graph_break"]
    # The first block's input has no gradient, the others' has.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    with adapter.disabled(denoiser):
        torch.testing.assert_close(family.predict(denoiser, noised, batch), base, atol=1e-6, rtol=0)
    torch.testing.assert_close(family.predict(denoiser, noised, batch), expected, atol=1e-5, rtol=0)


def test_whole_weights_keep_the_base_in_fp32_in_a_bf16_run(runs: Runs) -> None:
    rotated = runs('[adapter]\nkind = "lycoris"\nalgo = "diag-oft"\nrank = 4\n', steps=1, precision="bf16")
    beside = runs(LOKR, steps=1, precision="bf16")

    assert "kept in fp32" in runs.notes(rotated)[0]
    assert "kept in fp32" not in runs.notes(beside)[0]
    run, _ = open_run(beside.directory, trust=True)
    assert run.denoiser.blocks[0].attn.to_q.weight.dtype == torch.bfloat16


def test_a_saved_run_and_its_file_predict_alike(runs: Runs, tmp_path: Path) -> None:
    done = runs(MIXED.replace(", module_dropout = 0.3", "").replace('to_v = { algo = "ia3" }', ""))
    run, _ = open_run(done.directory, trust=True)
    family = TinyFamily(TinyFamily.Options(checkpoint=str(tmp_path / "tiny")))
    batch = example_batch(family, Geometry(64, 64))
    noised = example_noised(family, batch)
    fresh = family.load_denoiser(CPU, torch.float32)
    with quiet():
        network, _ = create_lycoris_from_weights(1.0, str(done.directory / "adapter.safetensors"), fresh)
        network.apply_to()

    with torch.no_grad():
        learned = family.predict(run.denoiser, noised, batch)
        assert not torch.equal(learned, family.predict(family.load_denoiser(CPU, torch.float32), noised, batch))
        torch.testing.assert_close(family.predict(fresh, noised, batch), learned, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("settings", "whole"),
    [({"algo": "ia3"}, True), ({"algo": "ia3", "on_input": True}, False), ({"algo": "full"}, True)],
)
def test_a_file_tells_by_its_names_what_it_needs(settings: dict[str, Any], whole: bool, tmp_path: Path) -> None:
    family = TinyFamily.tiny(tmp_path)
    denoiser, adapter = family.load_denoiser(CPU, torch.float32), LycorisAdapter(LycorisOptions(**settings))
    adapter.attach(denoiser, family.adapter_targets())
    file = adapter.export(family, denoiser, tmp_path, {})

    again = LycorisAdapter(LycorisOptions(start=str(file)))

    assert (again.base_dtype(torch.bfloat16) == torch.float32) == whole
    assert bool(again.needs_whole) == whole


def test_a_preset_file_trains(runs: Runs, tmp_path: Path) -> None:
    settings = {
        "algo": "lokr",
        "linear_dim": 4,
        "linear_alpha": 2,
        "apply_preset": {"target_name": [".*to_q"], "target_module": []},
    }
    (tmp_path / "lycoris_config.json").write_text(json.dumps(settings), encoding="utf-8")
    done = runs(f'[adapter]\nkind = "lycoris"\npreset = {json.dumps(str(tmp_path / "lycoris_config.json"))}\n', steps=1)

    assert "lokr on 3 layers" in runs.notes(done)[0]


@pytest.mark.parametrize(
    ("adapter", "word"),
    [
        ('kind = "lycoris"\ntargets = ["to_qq"]', "to_q"),
        ('kind = "lycoris"\nexclude = ["to_x"]', "to_x"),
        ('kind = "lycoris"\npreset = "nowhere.json"', "no such file"),
        ('kind = "lycoris"\nformat = "kohya"', "format"),
        ('kind = "lycoris"\nalgo = "loha"\nfactor = 4', "no factor"),
        ('kind = "lycoris"\nlayers = { to_q = { algo = "lorka" } }', "layers.'to_q'"),
        ('kind = "lycoris"\nlayers = { to_z = { rank = 2 } }', "to_z"),
        ('kind = "lycoris"\nstart = "old.pt"', "pickle"),
        ('kind = "lycoris"\nfull_matrix = true\nrank = 4', "leave out rank"),
        ('kind = "lycoris"\nstart = "old.safetensors"\nrank = 4', "leave out rank"),
    ],
)
def test_what_users_mistype_is_named(runs: Runs, adapter: str, word: str) -> None:
    with pytest.raises(AssertionError) as raised:
        runs(f"[adapter]\n{adapter}\n", steps=1)

    assert word in str(raised.value)


def test_a_lora_file_goes_on_as_products_of_two(runs: Runs) -> None:
    lora = runs('[adapter]\nkind = "lora"\nrank = 2\n', steps=1)
    start = json.dumps(str(lora.directory / "adapter.safetensors"))

    done = runs(f'[adapter]\nkind = "lycoris"\nstart = {start}\n', steps=1)

    assert "locon on 12 layers" in runs.notes(done)[0]
