"""Policies that compute some of the tokens: docs/pruning.md."""

from wanlab.engine.policies.pruning import merge, rules

__all__ = ["merge", "rules"]
