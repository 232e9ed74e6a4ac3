"""What settings that are right by themselves have against each other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from st.model.adapters.full import FullAdapter, FullOptions
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.registrar import Choice
from st.settings.together import quantizer_problems


def test_adapters_that_train_the_base_are_refused_over_quantized_weights() -> None:
    config: Any = SimpleNamespace(quantizer=Choice("rounding", FullOptions(), FullAdapter))
    config.adapter = Choice("lora", LoraOptions(), LoraAdapter)
    assert quantizer_problems(config) == []

    config.adapter = Choice("full", FullOptions(), FullAdapter)
    (problem,) = quantizer_problems(config)

    assert "adapter.kind = 'full' trains them" in problem.what
    assert 'Set adapter.kind to "lora"' in problem.fix
