"""The official settings of each model (docs/models.md gives the sources)."""

from __future__ import annotations

from typing import Any

# `sample_neg_prompt` of wan/configs/shared_config.py, the same in Wan 2.1 and 2.2. The official program puts it in the
# place of an empty negative prompt.
NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，"
    "残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，"
    "三条腿，背景人很多，倒着走"
)
# What `--task` sets where the command line says nothing; docs/models.md gives the sources.
TASKS: dict[str, dict[str, Any]] = {
    "t2v-A14B": {"size": "832x480", "frames": 81, "steps": 40, "shift": 12.0, "guidance": "3,4", "negative": NEGATIVE},
    "ti2v-5B": {"size": "1280x704", "frames": 121, "steps": 50, "shift": 5.0, "guidance": "5", "negative": NEGATIVE},
    "t2v-1.3B": {"size": "832x480", "frames": 81, "steps": 50, "shift": 8.0, "guidance": "6", "negative": NEGATIVE},
    "t2v-14B": {"size": "832x480", "frames": 81, "steps": 50, "shift": 5.0, "guidance": "5", "negative": NEGATIVE},
    "tiny": {},
}
TINY: dict[str, Any] = {"size": "144x80", "frames": 49, "steps": 20, "shift": None, "guidance": "4", "negative": ""}
