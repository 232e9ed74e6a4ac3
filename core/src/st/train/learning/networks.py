"""Networks beside the denoiser: asked for, put where they stay, shared out and saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from st.errors import StError
from st.model.adapters.adapter import restore
from st.train.saving.state import read_state

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from st.plugins.activation import Plugins
    from st.train.parts.networks import Network
    from st.train.parts.run import Run
    from st.train.ranks.ranks import Ranks


def add_networks(run: Run, plugins: Plugins, checkpoint: Path | None = None) -> None:
    """Ask plugins for their networks, put them where they stay, and share them out: ``run.networks``.

    checkpoint: whose weights those that are saved take on, while they are whole on every rank.
    """
    owners: dict[str, str] = {}
    for owner, answer in plugins.answers("st_networks", run=run):
        for network in answer:
            if network.name in owners:
                raise StError(
                    f"{owners[network.name]} and {owner} both bring a network named {network.name!r}",
                    fix=f"leave one of the two out, or let {owner} name it otherwise",
                )
            owners[network.name] = owner
            _settle(run, network, checkpoint)


def _settle(run: Run, network: Network, checkpoint: Path | None) -> None:
    if not network.learns:
        network.module.requires_grad_(False).eval()
    elif network.stays != "device":
        raise StError(f"network {network.name!r} learns, so it stays on the device", why=f"stays = {network.stays!r}")
    network.module.to(run.device if network.stays == "device" else torch.device("cpu"))
    if network.saved and not network.learns and checkpoint is not None:
        restore(saved_tensors(network.module), read_network(checkpoint, network.name), f"network {network.name!r}")
    if network.stays == "device" and not network.learns:
        run.ranks.shard(network.module, network.blocks)
    run.networks[network.name] = network
    run.report.note(network.describe(), kind="network", name=network.name, stays=network.stays)


def saved_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Everything that its ``state_dict`` holds; not copied."""
    return dict(module.state_dict(keep_vars=True))


def read_network(checkpoint: Path, name: str) -> Mapping[str, Tensor]:
    """The saved weights of a network. Raises StError where the checkpoint is from before there was one."""
    if not (checkpoint / "state" / f"network-{name}.json").exists():
        raise StError(f"the checkpoint in {checkpoint} holds no network {name!r}", fix="resume with the same plugins")
    found: Mapping[str, Tensor] = read_state(checkpoint / "state", f"network-{name}")
    return found


def network_states(networks: Iterable[Network], ranks: Ranks) -> dict[str, Any]:
    """What checkpoints hold of them, by the name of the state; whole on rank 0."""
    kept = [network for network in networks if network.saved and not network.learns]
    return {f"network-{one.name}": whole(saved_tensors(one.module), ranks) for one in kept}


def whole(tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """The tensors of which this rank may hold parts, whole on rank 0."""
    return {name: ranks.gather(ranks.part(tensor), tensor) for name, tensor in tensors.items()}
