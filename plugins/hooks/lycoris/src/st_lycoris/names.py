"""Names of tensors in a LyCORIS file, read without loading one."""

from __future__ import annotations

import json
from pathlib import Path

_WHOLE = ("diff", "oft_blocks", "dora_scale", "w_norm")


def start_rebuilds(start: str) -> bool:
    """Whether a file holds an algorithm that computes whole weights; False for what is no safetensors file.

    Needs no torch: it is asked while a run is planned.
    """
    try:
        with Path(start).expanduser().open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if size < 2**27 else {}
            for key, facts in header.items():
                if key.endswith(".on_input"):
                    begin, end = facts["data_offsets"]
                    file.seek(8 + size + begin)
                    if not any(file.read(end - begin)):
                        return True
    except (OSError, ValueError):
        # What is wrong with the file is said when it is opened.
        return False
    return any(key.partition(".")[2] in _WHOLE for key in header)
