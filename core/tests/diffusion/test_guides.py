"""A family's own way to guide takes the place of the plain one."""

import torch

from st.diffusion.sampler import guided


def test_a_way_to_guide_is_given_both_predictions_and_the_strength() -> None:
    wanted, against = torch.tensor([2.0]), torch.tensor([1.0])

    ask = guided(
        lambda x, t: wanted, lambda x, t: against, 3.0, combine=lambda one, other, strength: one * strength - other
    )

    assert ask(torch.zeros(1), torch.ones(1)).tolist() == [5.0]
