"""Training: batches of a store's samples, in order or shuffled, read ahead of the loop."""

from raggedstore.training.batching import Bucketed, FixedSize, Rule, TokenBudget
from raggedstore.training.crops import Crop
from raggedstore.training.loader import Loader
from raggedstore.training.mixture import Mixture
from raggedstore.training.orders import Order, Permuted, Sequential, Shuffled, Weighted
from raggedstore.training.packing import Packed, PackedRows
from raggedstore.training.recurrent import Windowed
from raggedstore.training.report import Quarantined, Report

__all__ = [
    "Bucketed",
    "Crop",
    "FixedSize",
    "Loader",
    "Mixture",
    "Order",
    "Packed",
    "PackedRows",
    "Permuted",
    "Quarantined",
    "Report",
    "Rule",
    "Sequential",
    "Shuffled",
    "TokenBudget",
    "Weighted",
    "Windowed",
]
