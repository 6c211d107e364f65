#!/usr/bin/env bash
# The whole job once, as a person would type it: captures, shards, training, scores, pictures. Run again, it goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup.sh

run() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }
unless_newer() { # RESULT SOURCE COMMAND...: run the command unless its result is there and newer than what it is made from
    if [ "$1" -nt "$2" ]; then printf '\n$ %s\n%s is there already\n' "${*:3}" "$1"; else run "${@:3}"; fi
}

found=$(python -m depthdist.models.hub)
read -r device model <<<"$found"
run=runs/quickstart
if [ -e $run/run.json ]; then # go on with the model it began with, whether the hub answers now or not
    model=$(python -c "import json; print(json.load(open('$run/run.json'))['settings']['model'])")
fi
capture=1200x1944 size=756x1260 epochs=15 lr=5e-5 # the recipe
if [ "$device" != cuda ]; then
    capture=600x972 size=154x252 epochs=8
    echo "No GPU: pictures of 600x972 and less instead of 1200x1944, and other epochs than the recipe's 15: some minutes on 2 cores."
fi
if [ "$model" = built-in ]; then
    size=294x476 epochs=10 lr=1e-3 # it is small, and takes larger steps
    echo "The model hub cannot be reached: this trains 'built-in', a small Depth Anything V2 pretrained on renderings (depthdist/models/foundation/README.md)."
fi
echo "device $device, model $model, pictures $size, $epochs epochs"

raw=data/tires_raw data=data/tires
run python tools/make_tires.py $raw --pairs 58 --size $capture --seed 0 --sheet
run python tools/shard.py $raw $data --size $size
run deepspeed launch/train.py --deepspeed ds_configs/fp16.json --data $data --model $model --recipe near --lora linear --epochs $epochs --lr $lr --run $run
unless_newer $run/evaluation.json $run/best/depthdist.json python launch/evaluate.py --run $run
unless_newer $run/report.html $run/evaluation.json python tools/report.py run $run
unless_newer $data-report.html $data/index.json python tools/report.py data $data
unless_newer $run/predictions/done $run/best/depthdist.json python launch/predict.py $raw/images --run $run --out $run/predictions
touch $run/predictions/done

cat <<END

Where to look
  $raw/truth/sheet.png               the captures: picture and depth
  $run/predictions/*_figure.png      RGB | truth | prediction | error, in mm
  $run/report.html                   the run: table with intervals, grooves, images, cuts, curves
  $data-report.html                      the data: depth, holes, sessions, near-twins, what looks wrong
  $run/evaluation.json               all numbers, of each image too
  python launch/serve.py $run           a page: drop a picture, read and measure mm, turn it in 3-D
  tensorboard --logdir runs                    curves and pictures, at http://localhost:6006 (first: . .venv/bin/activate)
END
