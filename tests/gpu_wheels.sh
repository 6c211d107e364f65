#!/usr/bin/env bash
# Gather what depthdist needs on a GPU machine without network, for tests/gpu_check.sh --wheels FOLDER:
#   bash tests/gpu_wheels.sh FOLDER [HAVE]
# HAVE  its packages, one a line, as `python3 -m pip list --format=freeze` gives them there; by default it has
#       Python 3.12 with torch, transformers and numpy, and what those need.
# --list instead of FOLDER prints the packages and gathers none.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:?"expected a folder, or --list"}
python=3.12
has="torch transformers numpy huggingface-hub tokenizers safetensors regex pyyaml packaging filelock fsspec jinja2 sympy networkx typing-extensions tqdm setuptools requests httpx"
[ $# -lt 2 ] || has=$(sed 's/[=<>! ].*//' "$2" | tr 'A-Z\n' 'a-z ' | tr '_.' -)

deepspeed="deepspeed hjson msgpack ninja py-cpuinfo pydantic einops psutil"
ours="peft accelerate webdataset braceexpand isal simplejpeg argcomplete pillow scipy numba h5py plyfile tifffile"
plots="scikit-image imageio lazy-loader matplotlib contourpy cycler fonttools kiwisolver pyparsing python-dateutil six"
logs="tensorboard tensorboard-data-server absl-py grpcio markdown protobuf werkzeug markupsafe"
remote="aiohttp aiohappyeyeballs aiosignal attrs frozenlist multidict propcache yarl idna"
tests="pytest iniconfig pluggy pygments pytest-timeout hypothesis sortedcontainers"

lacking=()
for name in $deepspeed $ours $plots $logs $remote $tests; do
    case " $has " in *" $name "*) ;; *) lacking+=("$name") ;; esac
done
[ "$folder" != --list ] || { printf '%s\n' "${lacking[@]}"; exit; }

mkdir -p "$folder"
binary=(--only-binary=:all: --python-version $python --implementation cp)
for tag in manylinux_2_34 manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do binary+=(--platform "${tag}_x86_64"); done
# the versions that all was tested with, where they are fixed; a constraint of an absent package does nothing
grep -v '^ *#' launch/constraints.txt | sed 's/;.*//' >"$folder/constraints"
for name in "${lacking[@]}"; do
    if [ "$name" = deepspeed ]; then # there is no wheel of it
        DS_BUILD_OPS=0 python3 -m pip wheel -q --no-deps --no-build-isolation -w "$folder" -c "$folder/constraints" deepspeed
    elif [ "$name" = pydantic ] || [ "$name" = numba ]; then # they need just that pydantic-core, that llvmlite
        python3 -m pip download -q "${binary[@]}" -d "$folder" -c "$folder/constraints" "$name"
    else
        python3 -m pip download -q --no-deps "${binary[@]}" -d "$folder" -c "$folder/constraints" "$name"
    fi
done
rm "$folder/constraints"
for file in "$folder"/*.whl; do
    name=$(basename "${file%%-[0-9]*}" | tr 'A-Z' 'a-z' | tr '_.' -)
    case " $has " in *" $name "*) rm "$file" ;; esac
done
ls -l "$folder"
