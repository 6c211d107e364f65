"""Training steps of the real engine on fake tensors of a CUDA device that does nothing.

python tests/helpers/fake_cuda_steps.py GUARD.so CASES.json FOUND.json

A process of its own: the guard is there before PyTorch is, and stays. No number is computed, but
each operation has its shapes, types and devices, as on a GPU.
"""

import collections
import ctypes
import functools
import json
import sys
import traceback
from datetime import timedelta
from pathlib import Path

if __name__ == "__main__":
    ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)

import torch
import torch.distributed as dist
from deepspeed.accelerator import set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from depthdist.core.environment import silence_libraries
from depthdist.distributed.process_group import World, _start_deepspeed
from depthdist.geometry import resampling
from depthdist.geometry.depth_range import DepthRange, normalize_depth
from depthdist.losses.settings import LossSettings
from depthdist.losses.terms import compute_losses
from depthdist.models.base_model import load_base
from depthdist.models.lora import add_lora, trained_groups
from depthdist.models.sample_dropout import draw_keys
from depthdist.models.settings import LoraSettings
from depthdist.training.deepspeed_config import EngineSettings
from depthdist.training.engine import Engine
from depthdist.training.weight_average import Ema

GPU = torch.device("cuda", 0)
IMAGE = (28, 42)
TRUTH = (30, 45)
COPIES = {"_to_copy", "copy_", "_copy_from"}  # what may have its input on another device


class FakeCuda(CPU_Accelerator):
    """DeepSpeed's accelerator for that device."""

    def device_name(self, device_index=None):
        return "cuda" if device_index is None else f"cuda:{device_index}"

    def current_device_name(self):
        return "cuda:0"

    def is_fp16_supported(self):
        return True


class Watch(TorchDispatchMode):
    """Count the operations of each phase, and note those whose tensors lie on several devices.

    A number that is read back from the device is 0: nothing has overflowed. On the host it is 1:
    Adam's number of steps.
    """

    def __init__(self):
        super().__init__()
        self.phase = "start"
        self.counts = collections.Counter()
        self.read_back = collections.Counter()
        self.mixed = []
        self.convolutions = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.partition("::")[2]
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if name == "_local_scalar_dense":
            on_gpu = tensors[0].device.type == "cuda"
            self.read_back[self.phase] += on_gpu
            return (0.0 if on_gpu else 1.0) if tensors[0].dtype.is_floating_point else 0
        out = func(*args, **(kwargs or {}))
        self.counts[self.phase] += 1
        tensors += [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        devices = {t.device.type for t in tensors if t.dim()}
        if {"cpu", "cuda"} <= devices and name not in COPIES:
            shapes = [(str(t.device), str(t.dtype), tuple(t.shape)) for t in tensors]
            self.mixed.append(f"{self.phase}: {name} {shapes}")
        if name == "convolution":
            self.convolutions.append((self.phase, str(tensors[0].dtype), tuple(tensors[1].shape)))
        return out


def to_fake_gpu(model):
    """Put the model's parameters and buffers on the device, as fakes of the mode that is on."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype, device=GPU)
                made = torch.nn.Parameter(fake, requires_grad=parameter.requires_grad)
                vars(made).update(vars(parameter))
                module._parameters[name] = made
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=GPU)
    model.to = lambda device: model  # it is there; a fake cannot be moved in place
    return model


def fake_resampling(real):
    """The weights of a resampling, which follow from numbers, as fakes of their shapes."""

    @functools.lru_cache
    def shapes(old, new, mode):
        with _disable_current_modes():
            return [(t.shape, t.dtype) for t in real(old, new, mode, torch.device("cpu"))]

    def resampling_on(old, new, mode, device):
        parts = [torch.empty(s, dtype=d, device=device) for s, d in shapes(old, new, mode)]
        return resampling._Taps(*parts)

    return resampling_on


def train_a_step(model, case, watch):
    """Take an optimizer step of two micro-batches; return what was seen of types and devices."""
    settings = EngineSettings(Path(f"ds_configs/{case['precision']}.json"))
    zero = {"stage": case["stage"]}
    config = {**settings.read(), "train_batch_size": 2, "zero_optimization": zero}
    config["optimizer"]["params"]["foreach"] = True  # torch's choice on a GPU
    head = [tuple(conv.weight.shape) for conv in (model.head.conv2, model.head.conv3)]
    groups = [(parameters, 1e-4) for parameters in trained_groups(model).values()]
    engine = Engine(model, config, groups, World(0, 1, GPU), micro_batch=1)
    grads = {}
    for name, parameter in engine.trained.items():
        parameter.register_post_accumulate_grad_hook(
            lambda p, name=name: grads.update({name: [p.grad.device.type, str(p.grad.dtype)]})
        )
    depth_range = DepthRange(300.0, 3000.0)
    for micro in range(2):
        watch.phase = "forward"
        rgb = torch.empty(1, *IMAGE, 3, dtype=torch.uint8, device=GPU)
        depth_mm = torch.empty(1, *TRUTH, device=GPU)
        valid = torch.ones(1, *TRUTH, dtype=torch.bool, device=GPU)
        target, mask = normalize_depth(depth_mm, depth_range, valid)
        model.train()
        pred = engine.forward(rgb, draw_keys(0, 0, [micro]).to(GPU))
        assert pred.dtype == torch.float32 and pred.device == GPU
        watch.phase = "loss"
        up = model.upsampled(pred, TRUTH)
        losses = compute_losses(LossSettings(loss=case["loss"]), up, target, mask, depth_range)
        loss = losses["loss"].double().sum() / 2
        watch.phase = "backward"
        engine.backward(loss, watch=micro == 0)
        watch.phase = "step"
        taken = engine.step()
    ema = Ema(0.9)
    ema.update(engine.masters())
    tensors, _ = engine.state()
    return {
        "taken": taken,
        "gradients": sorted({tuple(seen) for seen in grads.values()}),
        "without a gradient": sorted(engine.trained.keys() - grads.keys()),
        "parameters": sorted({str(p.dtype) for p in engine.trained.values()}),
        "state": sorted({(t.device.type, str(t.dtype)) for t in tensors.values()}),
        "kinds of state": sorted({name.partition("/")[0] for name in tensors}),
        "head": sorted({dtype for phase, dtype, shape in watch.convolutions if shape in head}),
        "others": sorted(
            {dtype for phase, dtype, shape in watch.convolutions if shape not in head}
        ),
        "averages": sorted({(t.device.type, str(t.dtype)) for t in ema.weights.values()}),
    }


def main(cases):
    """Run all cases and return what each was like, or its error."""
    silence_libraries()
    set_accelerator(FakeCuda())
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    dist.init_process_group("fake", rank=0, world_size=1, store=FakeStore())
    _start_deepspeed("fake", timedelta(seconds=60))
    resampling._resampling = fake_resampling(resampling._resampling.__wrapped__)
    found = {}
    fakes = FakeTensorMode()  # one for all: our caches keep tensors
    for name, case in cases.items():
        base = load_base("tiny")
        base.fresh_decoder = False
        model = add_lora(base, LoraSettings(**case["lora"]), 0)
        if case["checkpointing"]:
            model.checkpoint_activations()
        watch = Watch()
        try:
            with fakes, watch:
                found[name] = train_a_step(to_fake_gpu(model), case, watch)
        except Exception:
            found[name] = {"error": traceback.format_exc()}
        found[name] |= {
            "mixed": watch.mixed,
            "operations": dict(watch.counts),
            "read back": dict(watch.read_back),
        }
    return found


if __name__ == "__main__":
    wanted = json.loads(Path(sys.argv[2]).read_text())
    Path(sys.argv[3]).write_text(json.dumps(main(wanted), indent=1))
