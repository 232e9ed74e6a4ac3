"""Times are moved as the scheduler of a checkpoint moves them."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from st.diffusion.shift import shift
from st.model.pipelines.schedule import scheduled_shift


@pytest.mark.parametrize("settings", [{}, {"shift": 3.0}, {"use_dynamic_shifting": True, "max_shift": 1.3}])
@pytest.mark.parametrize("tokens", [256, 1000, 4096])
def test_the_shift_is_the_schedulers(settings: dict[str, Any], tokens: int) -> None:
    scheduler: Any = FlowMatchEulerDiscreteScheduler(**settings)
    config = scheduler.config
    points = (config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=calculate_shift(tokens, *points))

    k = scheduled_shift(dict(config), tokens)

    expected = [shift(time, k) for time in (1.0, 0.75, 0.5, 0.25, 0.0)]
    assert scheduler.sigmas.tolist() == pytest.approx(expected, abs=1e-6)
