"""A denoiser that is told a second time: where a step leads, in training by a technique and in previews by the core."""

from __future__ import annotations

import json
from pathlib import Path

from st.testing.runs import TinyRun, call_cli, write_photos
from st.testing.subjects.tiny import TinyFamily

MAP = '''
from st.testing.subjects.tiny import TinyFamily


class Map(TinyFamily):
    """Answers for the whole way from a time to another one."""

    def predict(self, denoiser, noised, batch):
        import torch

        leads = noised.told["target_time"]
        with open(self.options.checkpoint + "/asked.txt", "a") as file:
            file.write("".join(f"{float(a)} {float(b)} {torch.is_grad_enabled()}\\n" for a, b in zip(noised.t, leads)))
        text = batch.conditions["text"]
        return denoiser(noised.x, noised.t, text) + denoiser(noised.x, noised.t - leads, text)
'''

JUMP = '''
from dataclasses import replace

from st import Options, hookimpl


class Jump:
    """Draws where each sample is to be led."""

    Options = Options

    def __init__(self, options):
        self.options = options

    @hookimpl
    def st_step(self, run):
        def wrap(step):
            def noise(batch, draws):
                noised = step.noise(batch, draws)
                return replace(noised, told={"target_time": noised.t * draws.uniform("target_time")})

            return replace(step, noise=noise)

        return wrap
'''

RUN_FILE = """
plugins = [{map}, {jump}]
output = {output}
steps = 2
batch = 2
precision = "fp32"
device = "cpu"
[model]
checkpoint = {checkpoint}
[adapter]
kind = "lora"
[shift]
kind = "static"
value = 3.0
[validation]
every = 2
prompts = ["a tree"]
resolutions = ["16"]
steps = 2
guidance = 1.0
at_start = false
compare_base = false
[[dataset]]
url = {photos}
resolution = 16
align = 8
"""


def test_a_flow_map_learns_and_is_sampled(tmp_path: Path) -> None:
    (tmp_path / "map.py").write_text(MAP, encoding="utf-8")
    (tmp_path / "jump.py").write_text(JUMP, encoding="utf-8")
    TinyFamily.tiny(tmp_path / "tiny")
    values = {
        "map": f"{tmp_path / 'map.py'}:Map",
        "jump": f"{tmp_path / 'jump.py'}:Jump",
        "output": tmp_path / "run",
        "checkpoint": tmp_path / "tiny",
        "photos": write_photos(tmp_path / "photos"),
    }
    file = tmp_path / "run.toml"
    file.write_text(RUN_FILE.format(**{name: json.dumps(str(value)) for name, value in values.items()}))

    result = call_cli("train", file)

    assert result.code == 0, result.err
    assert not TinyRun(tmp_path / "run", result).warnings("could not be")
    asked = [line.split() for line in (tmp_path / "tiny" / "asked.txt").read_text().splitlines()]
    trained = [(float(t), float(leads)) for t, leads, learns in asked if learns == "True"]
    sampled = [(float(t), float(leads)) for t, leads, learns in asked if learns == "False"]
    assert len(trained) == 4 and all(0 < leads < t for t, leads in trained)
    assert sampled == [(1.0, 0.75), (0.75, 0.0)]
