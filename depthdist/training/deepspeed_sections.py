"""What becomes of each part of a DeepSpeed file: used, given our value, left out, or refused.

config, remarks = settle_sections(read_deepspeed_json(path))
"""

from __future__ import annotations

import copy
from typing import Any

AUTO = "auto"  # Hugging Face's word for a value that its Trainer fills in
OWN_VALUES: dict[str, Any] = {  # what "auto" means, else DeepSpeed's default
    "train_batch_size": 8,
    "gradient_clipping": 1.0,
    "optimizer.type": "AdamW",
    "optimizer.params.betas": [0.9, 0.999],
    "optimizer.params.eps": 1e-8,
    "optimizer.params.weight_decay": 0.0,
}
LOG = "this run's log is RUN/metrics.jsonl and RUN/tensorboard"
LEFT_OUT = {
    "wandb": LOG,
    "tensorboard": LOG,
    "csv_monitor": LOG,
    "comet": LOG,
    "flops_profiler": "`python tools/bench.py step` measures a step",
    "autotuning": "--micro-batch auto finds the micro-batch",
    "activation_checkpointing": "--checkpointing does that",
    "aio": "nothing is offloaded to NVMe",
}
SMALL = "what is trained and its moments stay on the device"
ZERO_LEFT_OUT = {
    "offload_optimizer": SMALL,
    "offload_param": SMALL,
    "cpu_offload": SMALL,
    "cpu_offload_params": SMALL,
    "cpu_offload_use_pin_memory": SMALL,
    "stage3_gather_16bit_weights_on_model_save": "a run saves adapters of its own",
    "stage3_gather_fp16_weights_on_model_save": "a run saves adapters of its own",
}
REFUSED = {
    "amp": "precision is fp16, bf16 or neither",
    "compression_training": "it changes what is learned",
    "curriculum_learning": "it changes what is learned; the order follows from --seed",
    "data_efficiency": "it changes what is learned; the order follows from --seed",
    "progressive_layer_drop": "it changes what is learned",
    "sparse_attention": "it changes what is learned",
    "elasticity": "train_batch_size is the same on any number of GPUs",
    "pipeline": "the network is small enough for one GPU",
    "tensor_parallel": "the network is small enough for one GPU",
    "hybrid_engine": "nothing is generated here",
    "eigenvalue": "it changes what is learned",
}
USED = {
    "train_batch_size",
    "gradient_clipping",
    "fp16",
    "bf16",
    "optimizer",
    "zero_optimization",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "communication_data_type",
    "data_types",
    "steps_per_print",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "prescale_gradients",
    "gradient_predivide_factor",
    "comms_logger",
    "checkpoint",
    "seed",
}


def settle_sections(config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the configuration without "auto" and what is left out, and a remark for each."""
    config = copy.deepcopy(config)
    remarks = _settle_auto(config)
    for name, why in LEFT_OUT.items():
        if name in config and _is_on(config.pop(name)):
            remarks.append(f"DeepSpeed file: {name} is left out: {why}")
    zero = config.get("zero_optimization")
    for name, why in ZERO_LEFT_OUT.items():
        if isinstance(zero, dict) and name in zero and _is_on(zero.pop(name)):
            remarks.append(f"DeepSpeed file: zero_optimization.{name} is left out: {why}")
    for name in REFUSED:
        if name in config and not _is_on(config[name]):
            del config[name]
    optimizer = config.get("optimizer")
    if isinstance(optimizer, dict) and optimizer.get("type") in ("Adam", "AdamW"):
        params = optimizer.get("params") or {}
        if isinstance(params, dict) and "torch_adam" not in params:
            optimizer["params"] = {**params, "torch_adam": True}
            remarks.append(
                "DeepSpeed file: optimizer.params.torch_adam is true: nothing to compile"
            )
    others = sorted(config.keys() - USED - REFUSED.keys())
    for name in others:
        if name not in (
            "scheduler",
            "train_micro_batch_size_per_gpu",
            "gradient_accumulation_steps",
        ):
            remarks.append(f"DeepSpeed file: {name} is not known here; DeepSpeed gets it as it is")
    return config, remarks


def refused_sections(config: dict[str, Any]) -> list[str]:
    """Return a line for each section that cannot be used here."""
    return [
        f"{name} is set; leave it out: {why}"
        for name, why in REFUSED.items()
        if name in config and _is_on(config[name])
    ]


def _is_on(section: Any) -> bool:
    """Return whether a section asks for something."""
    if not isinstance(section, dict):
        return bool(section)
    return section.get("enabled", True) is not False and section.get("device") != "none"


def _settle_auto(config: dict[str, Any]) -> list[str]:
    """Replace each "auto" by our value, or leave it out; return one remark about all."""
    told = _settle_precision(config)
    scheduler = config.get("scheduler")
    if isinstance(scheduler, dict) and _has_auto(scheduler.get("params") or {}):
        del config["scheduler"]
        told.append("scheduler is --schedule")
    told += _settle_values(config, "")
    return [f'DeepSpeed file: "auto": {"; ".join(told)}'] if told else []


def _has_auto(params: Any) -> bool:
    return isinstance(params, dict) and AUTO in params.values()


def _settle_precision(config: dict[str, Any]) -> list[str]:
    """Let "auto" mean the recipe's fp16, unless the other one is chosen."""
    sections = {name: config.get(name) for name in ("fp16", "bf16")}
    asked = {
        name: s.get("enabled") if isinstance(s, dict) else None for name, s in sections.items()
    }
    if AUTO not in asked.values():
        return []
    chosen = next((name for name, value in asked.items() if value is True), "fp16")
    for name, section in sections.items():
        if isinstance(section, dict) and (asked[name] == AUTO or name == chosen):
            section["enabled"] = name == chosen
    if not isinstance(sections[chosen], dict):
        config[chosen] = {"enabled": True}
    return [f"the precision is {chosen}"]


def _settle_values(section: dict[str, Any], above: str) -> list[str]:
    told = []
    for name, value in list(section.items()):
        path = above + name
        if isinstance(value, dict):
            told += _settle_values(value, f"{path}.")
        elif value == AUTO and path in OWN_VALUES:
            section[name] = OWN_VALUES[path]
            told.append(f"{path} is {OWN_VALUES[path]}")
        elif value == AUTO:
            del section[name]
            told.append(f"{path} is left out")
    return told
