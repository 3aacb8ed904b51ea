"""The PyTorch model: a compact decoder, and memory layers of every published kind."""

from .cache import KVCache
from .decoder import UltraMemModel
from .loading import load
from .memory import MemoryLayer, Retrieval, ValueTable

__all__ = ["KVCache", "MemoryLayer", "Retrieval", "UltraMemModel", "ValueTable", "load"]
