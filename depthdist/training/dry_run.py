"""Print all that follows from the settings, and stop (--dry-run)."""

from __future__ import annotations

from depthdist.core.environment import rank, world_size
from depthdist.data.loader import Loader
from depthdist.models.base_model import load_base
from depthdist.models.lora import add_lora
from depthdist.training.deepspeed_config import precision
from depthdist.training.micro_batch import step_memory
from depthdist.training.run_facts import (
    derive_facts,
    describe_facts,
    describe_rates,
    validation_remarks,
)
from depthdist.training.settings import Settings
from depthdist.training.training_data import make_plan


def dry_run(settings: Settings) -> None:
    """Print all that follows from the settings; compute and write nothing."""
    if rank():
        return
    dataset = settings.open_data()
    ds_config, remarks = settings.engine.resolved()
    plan = make_plan(
        dataset, settings, settings.engine.micro_batches(world_size())[0], world_size()
    )
    model = add_lora(load_base(settings.model.model), settings.lora, settings.train.seed)
    loader = Loader(dataset, settings.data, settings.augment)
    facts = derive_facts(dataset, plan, loader, model, settings.train.epochs, precision(ds_config))
    memory = step_memory(
        model, plan.micro_batch, dataset.size, dataset.depth_size, facts["precision"]
    )
    parts = ", ".join(f"{name} {num_bytes / 2**20:.0f} MiB" for name, num_bytes in memory.items())
    lines = [
        *describe_facts(facts),
        *describe_rates(settings),
        f"memory       about {sum(memory.values()) / 2**30:.2f} GiB a rank: {parts}",
    ]
    if settings.engine.micro_batch == "auto":
        lines.append(
            "micro-batch  the largest that fits is found when training starts; shown is the largest"
            " that the global batch allows"
        )
    for name, value in settings.as_dict().items():
        if value is not None:
            lines.append(f"setting      {name} = {value}")
    remarks = [*remarks, *validation_remarks(dataset, settings.schedule.val_images)]
    print("\n".join([*lines, *remarks, "dry run: nothing was computed or written"]))
