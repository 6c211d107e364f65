"""Export a trained adapter in standard forms: whole model, adapter with a model card, ONNX in mm.

    depthdist export runs/NAME OUT

    OUT/model      Hugging Face format, the adapter merged in, its processor set to the training
                   size: transformers.pipeline("depth-estimation", ...)
    OUT/adapter    plain peft files with a model card
    OUT/onnx       depth_fp32.onnx and depth_fp16.onnx: uint8 RGB of the training size in, mm out
                   (onnx_export.py compares them with PyTorch)

Where the run has a detail stage, also

    OUT/model      detail.safetensors, detail.json, and detail.py (with detail_network.py), which
                   predicts with both networks
    OUT/adapter    detail.safetensors, detail.json
    OUT/onnx       depth_detail_fp32.onnx and depth_detail_fp16.onnx: uint8 RGB of full size in,
                   mm out

OUT/model and OUT/adapter are accepted by `depthdist predict --run`.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from depthdist.core.environment import silence_libraries
from depthdist.core.errors import one_line
from depthdist.core.file_lock import hold_folder
from depthdist.core.files import parse_json, replace_folder
from depthdist.core.settings import Size
from depthdist.evaluation.seen import describe_seen
from depthdist.evaluation.tables import format_interval, format_value
from depthdist.inference.external_model import load_model
from depthdist.inference.model_folder import find_model_folder
from depthdist.inference.settings import ExportSettings, ExternalAdapterSettings
from depthdist.models import detail_network
from depthdist.models.adapter import describe_model, save_full_model
from depthdist.models.adapter_record import ADAPTER_FILE, WEIGHTS, AdapterRecord
from depthdist.models.completion import Completion, load_completion
from depthdist.models.depth_model import DepthModel
from depthdist.models.detail import Detail
from depthdist.models.refiner import load_refiner
from depthdist.models.stage_files import adapter_sha256, write_stage
from depthdist.runs.run_folder import RUN_FILE, open_run
from depthdist.runs.seen_images import seen_file

CARD_METRICS = ("abs_rel", "delta1", "rmse_mm", "mae_mm")
# of base models, as their own cards say; the user has to look up any other's
LICENCES = {
    "depth-anything/Depth-Anything-V2-Small-hf": "apache-2.0",
    "depth-anything/Depth-Anything-V2-Base-hf": "cc-by-nc-4.0",
    "depth-anything/Depth-Anything-V2-Large-hf": "cc-by-nc-4.0",
    "built-in": "apache-2.0",
}
CARD = """\
# Depth in millimetres, from {base}

Depth Anything V2 fine-tuned with LoRA by depthdist on images with measured depth; epoch {epoch}, \
step {step}. It sees images resized to {size}
(bicubic, aspect not kept) and gives {scale} depth d >= 0. In millimetres:

    z = {formula}

1 is {near_mm:.2f} mm and 0 is {far_mm:.2f} mm, the nearest and farthest depth of its training \
set: it cannot predict farther depths. It is right for that camera
and that kind of scene; on others the millimetres are wrong although the image looks right.
{detail}
## Data

{data}

## Scores

{scores}

## Licence

{licence}
"""

# what runs a detail stage without us: our own files, by their names there, and what becomes of
# lines that import others of ours
DETAIL_MODULES = {
    "detail.py": Path(__file__).with_name("exported_detail.py"),
    "detail_network.py": Path(detail_network.__file__),
}
IMPORTS = {
    "from depthdist.models.detail_network import": "from detail_network import",
    "from depthdist.models.depth_model import Float32Conv2d": (
        "from torch.nn import Conv2d as Float32Conv2d  # the network is float32 as a whole here"
    ),
}
DETAIL_CARD = {
    "transformers": """
## Fine detail

`pipeline("depth-estimation")` gives the coarse depth alone. `detail.safetensors` is a second \
network, which adds relief from the image at its full size ({size} in training). Both together:

    python detail.py IMAGE                   # writes IMAGE_depth.npy: float32, mm

    from detail import DetailedDepth         # in this folder; or from Python
    depth_mm = DetailedDepth(".")(PIL.Image.open("image.png"))

The two modules need torch, transformers, safetensors, numpy and Pillow. \
`depthdist predict --run` uses the detail stage by itself.
""",
    "peft": """
## Fine detail

`peft` gives the coarse depth alone. `detail.safetensors` is a second network, which adds relief \
from the image at its full size ({size} in training); `depthdist predict --run` uses it.
""",
}


@torch.no_grad()
def export_model(settings: ExportSettings, external: ExternalAdapterSettings) -> None:
    """Write every form that --forms names, and print how to use it."""
    silence_libraries()
    check_foreign_folders(settings)
    with hold_folder(settings.out, "depthdist export", "OUT"):
        _export_forms(settings, external)


def _export_forms(settings: ExportSettings, external: ExternalAdapterSettings) -> None:
    model, record = load_model(settings.run, external)
    print(describe_model(model, record))
    folder = find_model_folder(settings.run)
    detail = load_own_detail(folder) if settings.detail else None
    completion = load_completion(folder)
    warn_without_scores(settings, record)
    network: Any = model.net
    if "adapter" in settings.forms:
        if isinstance(network, PeftModel):
            export_adapter(settings.run, record, settings.out / "adapter", detail, completion)
        else:
            print("no adapter: the network trained as a whole, which `model` holds")
    if isinstance(network, PeftModel):
        model.net = network.merge_and_unload()
    if "model" in settings.forms:
        out = settings.out / "model"
        export_full_model(model, record, out, settings.run, detail, completion)
    if "onnx" in settings.forms:
        from depthdist.inference.onnx_export import export_onnx

        export_onnx(model, record, settings.out / "onnx", settings.run)
        if detail:
            from depthdist.inference.onnx_detail import export_detail_onnx

            export_detail_onnx(model, record, detail, settings.out / "onnx", settings.run)


def load_own_detail(folder: Path) -> Detail | None:
    """Return the detail stage of a run or of an exported folder, None where there is none.

    raises ValueError where it is damaged or of another adapter
    """
    try:
        return load_refiner(None, folder).detail
    except ValueError as err:
        raise ValueError(f"{err}; --no-detail exports without it") from None


def check_foreign_folders(settings: ExportSettings) -> None:
    """Raise ValueError if a folder to replace holds something else than an export."""
    for form in ("model", "adapter"):
        folder = settings.out / form
        if form in settings.forms and folder.exists() and not (folder / ADAPTER_FILE).exists():
            raise ValueError(
                f"{folder}: exists and is no export of depthdist; expected a new folder, or one of"
                " an earlier export"
            )


def warn_without_scores(settings: ExportSettings, record: AdapterRecord) -> None:
    """Print a warning if the model card will have no scores."""
    if not {"adapter", "model"} & set(settings.forms):
        return
    if read_own_evaluation(find_model_folder(settings.run), record) is None:
        print(
            "WARNING      the card has no scores: no evaluation of this adapter on its run's own"
            f" data is there (`depthdist evaluate --run {settings.run}` makes one)"
        )


def export_adapter(
    run: str,
    record: AdapterRecord,
    folder: Path,
    detail: Detail | None,
    completion: Completion | None,
) -> None:
    """Copy the adapter's own files and write its stages and its card beside them."""
    source = find_model_folder(run)
    source = source if (source / "adapter_config.json").exists() else source / "best"
    with replace_folder(folder) as fresh:
        for name in ("adapter_config.json", WEIGHTS):
            shutil.copy(source / name, fresh)
        (fresh / ADAPTER_FILE).write_text(json.dumps(asdict(record), indent=1), encoding="utf-8")
        copy_seen(run, fresh)
        if detail:
            write_stage("detail", detail.network.state_dict(), detail.record, fresh)
        if completion:
            weights = completion.network.state_dict()
            write_stage("completion", weights, completion.record, fresh)
        (fresh / "README.md").write_text(model_card(run, record, "peft", detail), encoding="utf-8")
    print(
        f'adapter      {folder}: peft.PeftModel.from_pretrained(base, "{folder}"); its README.md is'
        " a model card for the hub"
    )


def export_full_model(
    model: DepthModel,
    record: AdapterRecord,
    folder: Path,
    run: str,
    detail: Detail | None,
    completion: Completion | None,
) -> None:
    """Write the model with the adapter merged in, its stages, and its card."""
    save_full_model(model, {}, record, folder)
    copy_seen(run, folder)
    if detail:  # it belongs to these merged weights now
        merged = replace(detail.record, adapter=adapter_sha256(folder))
        write_stage("detail", detail.network.state_dict(), merged, folder)
        write_detail_modules(folder)
    if completion:
        of_merged = replace(completion.record, adapter=adapter_sha256(folder))
        write_stage("completion", completion.network.state_dict(), of_merged, folder)
    card = model_card(run, record, "transformers", detail)
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(
        f'model        {folder}: transformers.pipeline("depth-estimation", "{folder}") gives'
        " normalized inverse depth; its README.md has the formula for mm"
    )
    if detail:
        print(f"detail       python {folder / 'detail.py'} IMAGE: mm with the detail stage")


def write_detail_modules(folder: Path) -> None:
    """Write the modules that predict with a detail stage, without an import of depthdist."""
    for name, path in DETAIL_MODULES.items():
        text = path.read_text(encoding="utf-8")
        for ours, theirs in IMPORTS.items():
            text = text.replace(ours, theirs)
        assert "depthdist." not in text.replace("depthdist.json", ""), path
        (folder / name).write_text(text, encoding="utf-8")


def copy_seen(run: str, folder: Path) -> None:
    """Copy the record of the images that the model learned from, for runs that go on from it."""
    path = seen_file(find_model_folder(run))
    if path:
        shutil.copy(path, folder)


def model_card(run: str, record: AdapterRecord, library: str, detail: Detail | None) -> str:
    """Return a model card in the hub's form: data, metrics with intervals, bounds, licence."""
    folder = find_model_folder(run)
    base = public_name(record.model)
    licence = LICENCES.get(record.model)
    head = {
        "library_name": library,
        "pipeline_tag": "depth-estimation",
        "license": licence or "other",
        "base_model": record.model if "/" in base else None,
        "tags": ["depth-anything-v2", "lora", "metric-depth"],
    }
    run_record = open_run(folder).record if (folder / RUN_FILE).exists() else None
    lines = [f"{name}: {json.dumps(value)}" for name, value in head.items() if value]
    text = CARD.format(
        base=base,
        epoch=record.epoch,
        step=record.step,
        size=Size(*record.size),
        scale="normalized inverse" if record.target == "inverse" else "normalized",
        formula=depth_formula(record),
        near_mm=record.near_mm,
        far_mm=record.far_mm,
        detail=DETAIL_CARD[library].format(size=Size(*detail.record.camera)) if detail else "",
        data=describe_data(run_record),
        scores=score_table(read_own_evaluation(folder, record)),
        licence=f"{licence}, as its base model {base}."
        if licence
        else f"That of its base model, {base}: look it up before passing this on.",
    )
    return "\n".join(["---", *lines, "---", text])


def public_name(model: str) -> str:
    """Return a base model's name for other people, to whom a path on this machine says nothing."""
    if model == "built-in":
        return "depthdist's built-in foundation"
    return Path(model).name if Path(model).is_dir() else model


def read_own_evaluation(folder: Path, record: AdapterRecord) -> dict[str, Any] | None:
    """Return the run's evaluation.

    None if there is none, or if it is of another adapter or on other data than the run's own.
    """
    path = folder / "evaluation.json"
    if not path.exists() or not (folder / RUN_FILE).exists():
        return None
    own_data = open_run(folder).record["derived"]["data_sha256"]
    try:
        evaluation: dict[str, Any] = parse_json(path.read_bytes())
        if evaluation["adapter"] != json.loads(json.dumps(asdict(record))):
            return None
        if evaluation["data_sha256"] != own_data:
            return None
        score_table(evaluation)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as err:
        raise ValueError(
            f"{path}: not what depthdist evaluate writes ({type(err).__name__}: {one_line(err)});"
            " run it again"
        ) from err
    return evaluation


def depth_formula(record: AdapterRecord) -> str:
    """Return the formula of depth in mm from the network's output d."""
    if record.target == "linear":
        return f"{record.far_mm:.6g} - d * {record.far_mm - record.near_mm:.6g}"
    low = 1 / record.far_mm
    high = 1 / record.near_mm
    return f"1 / ({low:.9g} + d * {high - low:.9g})"


def describe_data(run_record: dict[str, Any] | None) -> str:
    """Return a paragraph on the training data and settings of a run.json."""
    if run_record is None:
        return "Not on record here."
    try:
        return _data_text(run_record["derived"], run_record["settings"])
    except (LookupError, TypeError, ValueError, OverflowError) as err:
        raise ValueError(
            f"{RUN_FILE} is not what depthdist train writes ({type(err).__name__}: {one_line(err)})"
        ) from err


def _data_text(derived: dict[str, Any], settings: dict[str, Any]) -> str:
    lr = settings["lr"] * derived.get("lr_factor", 1)
    return (
        f"{derived['train_samples']} captures to train, {derived['val_samples']} to validate;"
        f" images {derived['picture_size']}, {settings['epochs']} epochs in batches of"
        f" {derived['global_batch']}, losses `{settings['loss']}`, learning rate"
        f" {lr:g}, seed {settings['seed']}, {derived['precision']}.\n"
        f"The data's sha256 is `{derived['data_sha256']}`."
    )


def score_table(evaluation: dict[str, Any] | None) -> str:
    """Return a table of the run's own evaluation, with the 95 % intervals of the means."""
    if evaluation is None:
        return "Not on record here."
    lines = [
        "| | images | " + " | ".join(CARD_METRICS) + " |",
        "|---" * (2 + len(CARD_METRICS)) + "|",
    ]
    for row, values in evaluation["rows"].items():
        cells = [
            score_cell(name, values.get(name), evaluation["intervals"][row].get(name))
            for name in CARD_METRICS
        ]
        lines.append(f"| {row} | {values['images']} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Means over the images of its {evaluation['split']} split, in brackets the 95 %"
        " interval of the mean (bootstrap over images).",
    ]
    if describe_seen(evaluation):
        lines.append(describe_seen(evaluation))
    return "\n".join(lines)


def score_cell(metric: str, value: float | None, interval: list[Any] | None) -> str:
    """Return a mean with its interval (two floats, or None twice), "-" if there is no mean."""
    if value is None or math.isnan(value):
        return "-"
    text = format_value(metric, value)
    if interval and None not in interval:
        low, high = interval
        text += f" ({format_interval(metric, (low, high))})"
    return text
