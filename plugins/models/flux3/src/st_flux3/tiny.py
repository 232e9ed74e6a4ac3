"""Tiny: a whole checkpoint with random weights, in the layout of the published ones, in a second on a CPU."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from st.model.checkpoint.checkpoint_folder import MODULAR_INDEX
from st.model.checkpoint.quiet import quietly
from st.model.pipelines.tiny_kit import same_weights, seeing
from st_flux2.tiny import tiny_autoencoder
from st_flux3.flavours import FLAVOURS

if TYPE_CHECKING:
    from pathlib import Path

WIDTH, LAYERS, TAKEN = 16, 32, 8
"""Of the language model, its layers, and how many hidden states a caption becomes."""
LATENTS = 4
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny(directory: Path, flavour: str) -> None:
    """Write ``modular_model_index.json`` and every component. The same weights each time."""
    import diffusers

    build: Any = diffusers  # not typed
    one = FLAVOURS[flavour]
    blocks = build.modular_pipelines
    pipeline = getattr(blocks, getattr(build, one.pipeline).default_blocks_name)().init_pipeline()
    with same_weights():
        encoder, tokenizer = seeing("Qwen3VLForConditionalGeneration", WIDTH, LAYERS)
        tokenizer.chat_template = TEMPLATE
        parts = {"text_encoder": encoder, "tokenizer": tokenizer, "vae": tiny_autoencoder(LATENTS)}
        parts["transformer"] = build.Flux3Transformer2DModel(
            in_channels=4 * LATENTS,
            cond_in_channels=4 * LATENTS,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=TAKEN * WIDTH,
            axes_dims_rope=(4, 4, 4, 4),
            flow_map=one.few_steps,
        )
    with quietly():
        pipeline.update_components(**parts)
        pipeline.save_pretrained(str(directory), overwrite_modular_index=True)
    # Published, the tokenizer stands inside of a processor, whose pictures captions do not need.
    index = json.loads((directory / MODULAR_INDEX).read_text(encoding="utf-8"))
    index["tokenizer"][:2] = ["transformers", "Qwen3VLProcessor"]
    index["tokenizer"][2]["type_hint"] = index["tokenizer"][:2]
    kept = {name: entry for name, entry in index.items() if name in parts or not isinstance(entry, list)}
    (directory / MODULAR_INDEX).write_text(json.dumps(kept, indent=2), encoding="utf-8")
