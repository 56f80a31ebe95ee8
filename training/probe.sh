#!/bin/sh
# A short look at a recipe on one GPU: tune the shipped weights on the open world with 35 % of the captions wrong, then
# measure. Usage: [RECIPE=JSON] sh training/probe.sh FOLDER [PYTHON]
# The standing recipe is meant to take under eight minutes; each stage that outlasts its limit goes on at the next call.
set -u
out=$1 python=${2:-python}
standing='{"pool":8000,"vae_lr":6e-4,"vae_phases":[[9,48,200],[17,28,450],[49,12,120]],
"buckets":[[144,80,49,14000,40,0.9],[144,80,17,3000,100,0.1]],"expert_steps":{"high":6000,"low":2500}}'
recipe=${RECIPE:-$standing}
mkdir -p "$out"
for only in vae transformers; do
    "$python" -m training.train --out "$out/run" --start wanlab/embedded/tiny --recipe "$recipe" --only "$only" \
        --seconds 300
done
"$python" -m training.probe --model "$out/run/tiny" --sheet "$out/sheet.png" --prompts 96 --guidance 1 4
"$python" -m benchmarks.validity --model "$out/run/tiny" --prompts 4 --seeds 1 --out "$out/validity"
