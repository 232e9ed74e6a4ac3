"""Qwen-Image for st: from text, and editing one picture or several."""

from st_qwen_image.family import QwenImage as QwenImage
from st_qwen_image.flavours import QwenImageOptions as QwenImageOptions

__all__ = ["QwenImage", "QwenImageOptions"]
