"""The processes that `torchrun` started, working on one clip. Without it there is one, and nothing here does anything.

Rank 0 runs the program: it alone decides, writes and speaks. The others wait for its orders (`follow` in
engine/run/follow.py) and do every step of a run in lockstep with it, so that all hold the same latents.
"""

from wanlab.engine.ranks.group import JobError, Ranks, here, join, quit

__all__ = ["JobError", "Ranks", "here", "join", "quit"]
