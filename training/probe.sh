#!/bin/sh
# A short look at a recipe on one GPU, under nine minutes: tune the shipped weights on world 2 with 35 % of the captions
# wrong, then measure. Usage: sh training/probe.sh FOLDER [PYTHON]
set -u
out=$1 python=${2:-python}
recipe='{"pool":8000,"vae_lr":6e-4,"vae_phases":[[9,48,200],[17,28,450],[49,12,120]],
"buckets":[[144,80,49,14000,40,0.9],[144,80,17,3000,100,0.1]],"captions":3,"expert_steps":{"high":6000,"low":2500}}'
for only in vae transformers; do
    timeout 330 "$python" -m training.train --out "$out/run" --start wanlab/embedded/tiny --recipe "$recipe" --only "$only" \
        --seconds 300 2>&1 | grep -v Warning
done
timeout 120 "$python" -m training.probe --model "$out/run/tiny" --sheet "$out/sheet.png" --prompts 96 --guidance 1 4 2>&1
timeout 60 "$python" -m training.sensitivity --model "$out/run/tiny" --json "$out/sensitivity.json" 2>&1
