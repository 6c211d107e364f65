"""A trained adapter in the forms that others take: a whole model, the bare adapter with its card,
ONNX in millimetres.

    python launch/export.py runs/NAME OUT

    OUT/model      Hugging Face format, the adapter merged in, its processor set to the training
                   size: transformers.pipeline("depth-estimation", ...)
    OUT/adapter    plain peft files with a model card
    OUT/onnx       depth_fp32.onnx and depth_fp16.onnx: uint8 RGB of the training size in, mm out
                   (onnx.py checks them against PyTorch)

Either folder is a `--run` of launch/predict.py.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from depthdist.core.environment import silence_libraries
from depthdist.core.files import replace_folder
from depthdist.core.settings import Size, did_you_mean, parse, positional
from depthdist.evaluation.tables import format_interval, format_value
from depthdist.inference import onnx_export as onnx
from depthdist.inference.external_model import ExternalAdapterSettings, find_adapter, load_model
from depthdist.models.adapter import describe_model, save_full_model
from depthdist.models.adapter_record import ADAPTER_FILE, WEIGHTS, AdapterRecord
from depthdist.runs.run_folder import RUN_FILE as RUN_RECORD
from depthdist.runs.run_folder import open_run

FORMS = ("model", "adapter", "onnx")
TOLD = ("abs_rel", "delta1", "rmse_mm", "mae_mm")
# of base models, as their own cards say; another's is for its user to look up
LICENCES = {
    "depth-anything/Depth-Anything-V2-Small-hf": "apache-2.0",
    "depth-anything/Depth-Anything-V2-Base-hf": "cc-by-nc-4.0",
    "depth-anything/Depth-Anything-V2-Large-hf": "cc-by-nc-4.0",
    "built-in": "apache-2.0",
}


@dataclass(frozen=True)
class ExportSettings:
    """Export"""

    run: str = positional()
    "Folder of the run, or of an adapter, or a hub id."
    out: Path = positional()
    "Folder to write to."
    forms: tuple[str, ...] = FORMS
    "What to write, with commas between: model, adapter, onnx."

    def problems(self) -> list[str]:
        found = [
            f"--forms has {form}: expected {', '.join(FORMS)}{did_you_mean(form, list(FORMS))}"
            for form in self.forms
            if form not in FORMS
        ]
        found += (
            ["--forms is empty: expected some of " + ", ".join(FORMS)] if not self.forms else []
        )
        if self.out.exists() and not self.out.is_dir():
            found.append(f"OUT {self.out}: is a file; expected a folder")
        if "onnx" in self.forms and (missing := onnx.missing_packages()):
            found.append(f"--forms has onnx: {missing}")
        return found


def export_model(settings: ExportSettings, given: ExternalAdapterSettings) -> None:
    """Write every form that is asked for, and say how to use it."""
    silence_libraries()
    for folder in (settings.out / form for form in ("model", "adapter") if form in settings.forms):
        if folder.exists() and not (folder / ADAPTER_FILE).exists():
            raise ValueError(
                f"{folder}: is there and no export of ours; expected a new folder, or one of an"
                " earlier export"
            )
    model, record = load_model(settings.run, given)
    print(describe_model(model, record))
    if {"adapter", "model"} & set(settings.forms) and own_scores(
        find_adapter(settings.run), record
    ) is None:
        print(
            "WARNING      the card has no scores: no evaluation of this adapter on its run's own"
            f" data is there (`python launch/evaluate.py --run {settings.run}` makes one)"
        )
    if "adapter" in settings.forms:
        if isinstance(model.net, PeftModel):
            bare_adapter(settings.run, record, settings.out / "adapter")
        else:
            print("no adapter: the network trained as a whole, which `model` holds")
    if isinstance(model.net, PeftModel):
        model.net = model.net.merge_and_unload()
    if "model" in settings.forms:
        folder = settings.out / "model"
        save_full_model(model, {}, record, folder)
        (folder / "README.md").write_text(model_card(settings.run, record, "transformers"))
        print(
            f'model        {folder}: transformers.pipeline("depth-estimation", "{folder}") gives'
            " normalised inverse depth; its README.md has the formula for mm"
        )
    if "onnx" in settings.forms:
        onnx.export_onnx(model, record, settings.out / "onnx", settings.run)


def bare_adapter(run: str, record: AdapterRecord, folder: Path) -> None:
    """Copy the adapter's own files and write its card beside them."""
    source = find_adapter(run)
    source = source if (source / "adapter_config.json").exists() else source / "best"
    with replace_folder(folder) as fresh:
        for name in ("adapter_config.json", WEIGHTS):
            shutil.copy(source / name, fresh)
        (fresh / ADAPTER_FILE).write_text(json.dumps(asdict(record), indent=1))
        (fresh / "README.md").write_text(model_card(run, record, "peft"))
    print(
        f'adapter      {folder}: peft.PeftModel.from_pretrained(base, "{folder}"); its README.md is'
        " a model card for the hub"
    )


def model_card(run: str, record: AdapterRecord, library: str) -> str:
    """A model card in the hub's form: data, metrics with intervals, bounds, licence."""
    folder = find_adapter(run)
    base = (
        "depthdist's built-in foundation"
        if record.model == "built-in"
        else Path(record.model).name
        if Path(record.model).is_dir()
        else record.model
    )  # a path on this machine says nothing to others
    facts = open_run(folder).record if (folder / RUN_RECORD).exists() else None
    evaluation = own_scores(folder, record)
    licence, size = LICENCES.get(record.model), Size(*record.size)
    head = {
        "library_name": library,
        "pipeline_tag": "depth-estimation",
        "license": licence or "other",
        "base_model": record.model if "/" in base else None,
        "tags": ["depth-anything-v2", "lora", "metric-depth"],
    }
    lines = [
        "---",
        *(f"{name}: {json.dumps(value)}" for name, value in head.items() if value),
        "---",
        f"# Depth in millimetres, from {base}",
        "",
    ]
    lines += [
        (
            "Depth Anything V2 fine-tuned with LoRA by depthdist on pictures with measured depth;"
            f" epoch {record.epoch}, step {record.step}. It sees pictures resized to {size}"
        ),
        (
            "(bicubic, aspect not kept) and gives"
            f" {'normalised inverse' if record.target == 'inverse' else 'normalised'} depth d >= 0."
            " In millimetres:"
        ),
        "",
        f"    z = {formula(record)}",
        "",
        (
            f"1 is {record.near_mm:.2f} mm and 0 is {record.far_mm:.2f} mm, the nearest and"
            " farthest depth of its training set: farther it cannot say. It is right for that"
            " camera"
        ),
        (
            "and that kind of scene; on others the millimetres are wrong although the picture looks"
            " right."
        ),
        "",
        "## Data",
        "",
        *data_lines(facts),
        "",
        "## Scores",
        "",
        *score_lines(evaluation),
        "",
        "## Licence",
        "",
        (
            f"{licence}, as its base model {base}."
            if licence
            else f"That of its base model, {base}: look it up before passing this on."
        ),
    ]
    return "\n".join(lines) + "\n"


def own_scores(folder: Path, record: AdapterRecord) -> dict[str, Any] | None:
    """The run's evaluation; None where there is none of this adapter on the run's own data."""
    path = folder / "evaluation.json"
    if not path.exists() or not (folder / RUN_RECORD).exists():
        return None
    evaluation = json.loads(path.read_text())
    of_this = evaluation.get("adapter") == json.loads(json.dumps(asdict(record)))
    return (
        evaluation
        if of_this
        and evaluation.get("data_sha256") == open_run(folder).record["derived"]["data_sha256"]
        else None
    )


def formula(record: AdapterRecord) -> str:
    if record.target == "linear":
        return f"{record.far_mm:.6g} - d * {record.far_mm - record.near_mm:.6g}"
    low, high = 1 / record.far_mm, 1 / record.near_mm
    return f"1 / ({low:.9g} + d * {high - low:.9g})"


def data_lines(facts: dict[str, Any] | None) -> list[str]:
    if facts is None:
        return ["Not on record here."]
    derived, settings = facts["derived"], facts["settings"]
    return [
        (
            f"{derived['train_samples']} captures to train, {derived['val_samples']} to validate;"
            f" pictures {derived['picture_size']}, {settings['epochs']} epochs in batches of"
            f" {derived['global_batch']}, losses `{settings['loss']}`, learning rate"
            f" {settings['lr']:g}, seed {settings['seed']}, {derived['precision']}."
        ),
        f"The data's sha256 is `{derived['data_sha256']}`.",
    ]


def score_lines(evaluation: dict[str, Any] | None) -> list[str]:
    """Of the run's own evaluation, with the 95 % intervals of the means."""
    if evaluation is None:
        return ["Not on record here."]
    lines = ["| | images | " + " | ".join(TOLD) + " |", "|---" * (2 + len(TOLD)) + "|"]
    for row, values in evaluation["rows"].items():
        cells = []
        for name in TOLD:
            value, interval = values.get(name), evaluation["intervals"][row].get(name)
            known = interval and None not in interval
            cells.append(
                "-"
                if value is None or math.isnan(value)
                else f"{format_value(name, value)}{f' ({format_interval(name, tuple(interval))})' if known else ''}"
            )
        lines.append(f"| {row} | {values['images']} | " + " | ".join(cells) + " |")
    return [
        *lines,
        "",
        (
            f"Means over the images of its {evaluation['split']} split, in brackets the 95 %"
            " interval of the mean (bootstrap over images)."
        ),
    ]


def main(argv: list[str] | None = None) -> None:
    settings, given = parse(
        "A trained adapter as a whole model, a bare adapter with its card, and ONNX.",
        ExportSettings,
        ExternalAdapterSettings,
        argv=argv,
    )
    with torch.no_grad():
        export_model(settings, given)
