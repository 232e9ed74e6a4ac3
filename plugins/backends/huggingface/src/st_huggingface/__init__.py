"""Data sets on the Hugging Face hub: files of a repository, and tables that the library ``datasets`` reads."""

from st_huggingface.folder import HubFolder
from st_huggingface.table import HubTable

__all__ = ["HubFolder", "HubTable"]
