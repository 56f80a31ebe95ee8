"""The prompts that come with wanlab, by short name: a suite to work with, and its twin to report on.

Each has 16 prompts of one thing, 13 of two and 3 drawn scenes, balanced over shapes, colours, sizes, motions, speeds
and backgrounds; among the pairs are things of one shape (is their number right?), large ones and motions along
different axes. They are full captions of the open world, which the verifier can judge, all but the drawn scenes. Their
combinations are held out of training, but for the red circle and the yellow star, and none is in both suites.
"""

from __future__ import annotations

SUITE: dict[str, str] = {
    "red circle right": "a large red circle moving right on a black background",
    "blue square down": "a medium blue square moving down on a white background",
    "yellow star left": "a large yellow star moving left in a starry night",
    "blue circle left": "a medium blue circle moving quickly left at sunset",
    "orange star right": "a small orange star moving right in a starry night",
    "purple star up": "a large purple star moving quickly up on a black background",
    "white cross up": "a large white cross moving slowly up on a gray background",
    "white star down": "a large white star moving quickly down at sunset",
    "red triangle still": "a medium red triangle standing still over a green meadow",
    "orange square still": "a medium orange square standing still on a gray background",
    "blue triangle bouncing": "a large blue triangle bouncing over a green meadow",
    "blue star bouncing": "a small blue star bouncing on a gray background",
    "orange triangle circling": "a medium orange triangle circling in a blue sky",
    "white triangle circling": "a medium white triangle circling on a black background",
    "yellow square growing": "a yellow square growing on a black background",
    "green circle growing": "a green circle growing at sunset",
    "green square, orange circle": (
        "a large green square moving quickly left and a small orange circle standing still on a white background"
    ),
    "green star, white square": (
        "a medium green star moving right and a small white square moving quickly down at sunset"
    ),
    "red cross, purple star": (
        "a large red cross moving right and a small purple star moving slowly right on a white background"
    ),
    "green cross, pink star": (
        "a medium green cross moving slowly up and a small pink star moving slowly right on a white background"
    ),
    "yellow triangle, pink cross": (
        "a small yellow triangle moving slowly up and a medium pink cross moving quickly up in a blue sky"
    ),
    "purple triangle, green square": (
        "a large purple triangle moving quickly up and a medium green square moving up in a blue sky"
    ),
    "pink triangle, yellow cross": (
        "a small pink triangle moving quickly up and a large yellow cross moving left in a blue sky"
    ),
    "yellow circle, red square": (
        "a medium yellow circle moving slowly down and a small red square moving slowly left on a black background"
    ),
    "white square, orange circle": (
        "a medium white square moving slowly down and a small orange circle moving slowly left in a starry night"
    ),
    "pink triangle, purple circle": (
        "a large pink triangle moving slowly down and a medium purple circle standing still over a green meadow"
    ),
    "green cross, red cross": (
        "a small green cross moving slowly down and a small red cross moving down in a starry night"
    ),
    "pink cross, orange cross": (
        "a medium pink cross standing still and a large orange cross moving up over a green meadow"
    ),
    "purple circle, pink circle": (
        "a small purple circle standing still and a small pink circle moving left on a gray background"
    ),
    "woman in a park": "A woman walking in a park",
    "sunset over the ocean": "A beautiful sunset over the ocean",
    "woman in a city": "A young woman walking in a city at night",
}

HELD_OUT: dict[str, str] = {
    "purple star left": "a small purple star moving slowly left on a gray background",
    "pink star left": "a large pink star moving quickly left in a starry night",
    "orange circle right": "a large orange circle moving right on a white background",
    "pink cross right": "a medium pink cross moving quickly right over a green meadow",
    "yellow cross up": "a large yellow cross moving quickly up on a black background",
    "red cross up": "a medium red cross moving quickly up in a blue sky",
    "yellow square down": "a large yellow square moving slowly down on a black background",
    "red circle down": "a medium red circle moving quickly down on a white background",
    "blue cross still": "a large blue cross standing still on a gray background",
    "red circle still": "a large red circle standing still on a gray background",
    "blue circle bouncing": "a small blue circle bouncing at sunset",
    "white cross bouncing": "a small white cross bouncing at sunset",
    "white star circling": "a medium white star circling at sunset",
    "yellow star circling": "a large yellow star circling in a starry night",
    "blue star growing": "a blue star growing on a black background",
    "green triangle growing": "a green triangle growing at sunset",
    "orange square, pink square": (
        "a medium orange square moving quickly left and a small pink square moving down in a blue sky"
    ),
    "yellow triangle, green star": (
        "a small yellow triangle moving left and a small green star moving right in a blue sky"
    ),
    "green cross, purple cross": (
        "a large green cross moving slowly left and a small purple cross standing still in a blue sky"
    ),
    "white triangle, pink square": (
        "a small white triangle moving slowly right and a medium pink square moving up on a gray background"
    ),
    "white square, red square": (
        "a large white square moving up and a medium red square standing still on a black background"
    ),
    "orange star, blue square": (
        "a large orange star moving quickly up and a medium blue square moving quickly left over a green meadow"
    ),
    "purple circle, pink triangle": (
        "a medium purple circle moving down and a small pink triangle moving slowly left on a white background"
    ),
    "red star, yellow circle": (
        "a small red star moving slowly down and a small yellow circle moving up in a starry night"
    ),
    "orange triangle, white circle": (
        "a large orange triangle moving quickly down and a small white circle moving slowly right on a gray background"
    ),
    "red triangle, green square": (
        "a large red triangle moving down and a medium green square standing still on a white background"
    ),
    "blue triangle, purple cross": (
        "a large blue triangle standing still and a medium purple cross moving down over a green meadow"
    ),
    "green triangle, orange cross": (
        "a small green triangle standing still and a small orange cross moving slowly right in a starry night"
    ),
    "pink star, purple square": (
        "a small pink star standing still and a small purple square moving slowly up over a green meadow"
    ),
    "man on a beach": "a man walking on a beach",
    "sunset over a lake": "sunset over the lake",
    "man in a city": "A young man walking through the city at night",
}

SUITES = {"builtin": SUITE, "held-out": HELD_OUT}
NAMES = {prompt: name for suite in SUITES.values() for name, prompt in suite.items()}
