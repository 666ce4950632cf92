"""The training loop: one for all objectives, on any device, in any number of processes, resumable to the same result.

The same script runs alone, or as several processes under `torchrun`: each takes its share of every batch.
"""

from lrc.training import objectives
from lrc.training.epochs import cosine, milestones
from lrc.training.loop import train

__all__ = ["cosine", "milestones", "objectives", "train"]
