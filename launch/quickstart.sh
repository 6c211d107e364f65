#!/usr/bin/env bash
# The whole job once, as a person would type it: captures, shards, training, scores, pictures. Run again, it goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup.sh

run() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }
unless_newer() { # RESULT SOURCE COMMAND...: run the command unless its result is there and newer than what it is made from
    if [ "$1" -nt "$2" ]; then printf '\n$ %s\n%s is there already\n' "${*:3}" "$1"; else run "${@:3}"; fi
}

read -r device model <<<"$(python -m depthdist.model)"
case $device in
cuda) capture=1200x1944 size=756x1260 epochs=15 ;;
*) capture=300x486 size=154x252 epochs=10 ;;
esac
case $model in
tiny) lr=1e-3 ;; # its decoder is fresh: it has all to learn
*) lr=5e-5 ;;
esac
echo "device $device, model $model"
[ "$device" = cuda ] || echo "No GPU: pictures of $size instead of 756x1260, $epochs epochs instead of 15. Some minutes on 2 cores."
[ "$model" = tiny ] && echo "The model hub cannot be reached: training the random built-in model 'tiny', which shows the way but knows nothing of depth."

raw=data/tires_raw data=data/tires run=runs/quickstart
run python tools/make_tires.py $raw --pairs 58 --size $capture --seed 0 --sheet
run python tools/shard.py $raw $data --size $size
run deepspeed launch/train.py --deepspeed ds_configs/fp16.json --data $data --model $model --epochs $epochs --lr $lr --run $run
unless_newer $run/evaluation.json $run/best/depthdist.json python launch/evaluate.py --run $run
unless_newer $run/predictions/done $run/best/depthdist.json python launch/predict.py $raw/images --run $run --out $run/predictions
touch $run/predictions/done

cat <<END

Where to look
  $raw/truth/sheet.png               the captures: picture and depth
  $run/predictions/*_figure.png      RGB | truth | prediction | error, in mm
  $run/evaluation.json               the table above
  tensorboard --logdir runs                    curves and pictures, at http://localhost:6006 (first: . .venv/bin/activate)
END
