"""Training: batches of a store's samples, in order or shuffled, read ahead of the loop."""

from raggedstore.training.batching import FixedSize
from raggedstore.training.loader import Loader
from raggedstore.training.orders import Order, Permuted, Sequential, Shuffled

__all__ = ["FixedSize", "Loader", "Order", "Permuted", "Sequential", "Shuffled"]
