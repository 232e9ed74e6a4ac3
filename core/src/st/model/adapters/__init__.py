"""What learns: LoRA, every weight, and the contract that other kinds keep.

Imports families and adapter files.
Read ``adapter.py`` first, then ``lora.py``.
"""
