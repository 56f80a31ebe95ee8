"""The operations of a pass, by numbers worked out by hand."""

import pytest

from wanlab.engine.model.config import TransformerConfig
from wanlab.engine.model.cost import Cost

CONFIG = TransformerConfig.from_json(
    {
        "num_attention_heads": 1,
        "attention_head_dim": 2,
        "in_channels": 1,
        "out_channels": 1,
        "text_dim": 3,
        "freq_dim": 4,
        "ffn_dim": 3,
        "num_layers": 2,
    }
)


def test_a_block():
    """D = 2, M = 3, L = 512, 2 queries, 4 keys: self-attention 8*2*4 + 4*2*4*2 = 128, cross-attention
    4*2*4 + 4*512*4 + 4*2*512*2 = 16416, feed-forward 4*2*2*3 = 48."""
    assert Cost.of(CONFIG).block(2, 4) == 128 + 16416 + 48


def test_around_the_blocks():
    """Two tokens of 4 values, in and out: 2 * (2*2*2*4) = 64; the text: 2*512*2*(3 + 2) = 10240; a timestep for each
    token: 2*2*2*(4 + 7*2) = 144."""
    assert Cost.of(CONFIG).around(2) == 64 + 10240
    assert Cost.of(CONFIG, per_token=True).around(2) == 64 + 10240 + 144


def test_a_pass():
    """Two blocks of 2 queries and 2 keys, 32 less each than with 4 keys, and what is around them."""
    assert Cost.of(CONFIG).whole(2) == 2 * (16592 - 32) + 10304


@pytest.mark.parametrize("n", [1, 7, 1000])
def test_fewer_queries_or_keys_cost_less(n):
    cost = Cost.of(CONFIG)
    assert cost.block(n, n) < cost.block(n, n + 1) < cost.block(n + 1, n + 1)


def test_channels_out_left_empty_are_those_in():
    """As WanTransformer3DModel has it; left out, they are its default, 16."""
    assert TransformerConfig.from_json({"in_channels": 48, "out_channels": None}).out_channels == 48
    assert TransformerConfig.from_json({"in_channels": 48}).out_channels == 16
