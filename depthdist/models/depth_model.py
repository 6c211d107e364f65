"""The network: uint8 pictures in, normalised inverse depth out.

What of it may be rounded to half precision, and what never.

model = load_base("tiny")  # a DepthModel; model.py says which there are, lora.py what trains in it
pred = model(rgb)                     # (B, h, w, 3) uint8 -> (B, h, w) float32
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from peft import PeftModel
from torch import Tensor, nn

from depthdist.geometry.resampling import upsample
from depthdist.models.sample_dropout import DropoutKeys

torch.backends.cudnn.allow_tf32 = (
    False  # a "float32" convolution with 10 bits is off by a millimetre at 1.5 m; torch has it on
)

Normalization = tuple[tuple[float, float, float], tuple[float, float, float]]


class Float32Conv2d(nn.Conv2d):
    """A convolution that computes in float32 whatever its own and its input's precision.

    One fp16 ulp of the output is half a millimetre at 1.5 m: the last layers of the head may not
    round to it. Where it is frozen its weights are buffers (`to_buffers`), which stay in float32
    too.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(
            x.float(), self.weight.float(), None if self.bias is None else self.bias.float()
        )

    def _apply(self, function, recurse: bool = True) -> nn.Module:
        def keeping(tensor: Tensor) -> Tensor:
            moved = function(tensor)
            return (
                moved
                if moved.dtype == tensor.dtype or isinstance(tensor, nn.Parameter)
                else tensor.to(moved.device)
            )

        return super()._apply(keeping, recurse)


def to_buffers(module: nn.Module) -> None:
    """Freeze what is in `module`: its parameters become buffers of the same name, which DeepSpeed
    neither casts nor cuts up.
    """
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.data)


def to_parameters(module: nn.Module) -> None:
    """Undo `to_buffers`."""
    for part in module.modules():
        for name, buffer in list(part.named_buffers(recurse=False)):
            delattr(part, name)
            part.register_parameter(name, nn.Parameter(buffer))


class DepthModel(nn.Module):
    """A DA-V2, with or without LoRA, that takes pictures as they are stored.

    net            DepthAnythingForDepthEstimation, or the PeftModel around it
    fresh_decoder  the decoder came without pretrained weights and is trained too
    normalization  mean and standard deviation of the pictures, three numbers each
    calibrated     `rescale` changed the head's last convolution: the adapter holds it
    upsampling     how its output is brought to the truth's size
    """

    def __init__(
        self, net: nn.Module, name: str, fresh_decoder: bool, normalization: Normalization
    ):
        super().__init__()
        self.net, self.name, self.fresh_decoder, self.calibrated, self.draws = (
            net,
            name,
            fresh_decoder,
            False,
            DropoutKeys(),
        )
        self.upsampling: Literal["bicubic", "bilinear"] = "bicubic"
        self.set_normalization(normalization)

    def set_normalization(self, normalization: Normalization) -> None:
        """Take pictures with that mean and standard deviation from now on."""
        self.normalization = tuple(tuple(values) for values in normalization)
        for name, values in zip(("mean", "std"), normalization):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, rgb: Tensor, draws: Tensor | None = None) -> Tensor:
        """Normalised inverse depth (B, h, w) float32, >= 0, of pictures (B, h, w, 3) uint8.

        draws  (B,) int64 as `dropout.draw_keys` gives them, for training with dropout: what is
               dropped follows from them alone
        """
        if self.training and self.draws.num_layers:
            assert draws is not None, "training with dropout needs the samples' draws"
            self.draws.set(draws, rgb.device)
        pixels = rgb.permute(0, 3, 1, 2).float() / 255  # (B, 3, h, w)
        pixels = (pixels - self.mean) / self.std
        dtype = next(self.net.parameters()).dtype
        return self.net(pixel_values=pixels.to(dtype)).predicted_depth.float()

    def upsampled(self, pred: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, h, w), as `forward` or `raw` give it, at the truth's size (B, H, W)."""
        return upsample(pred, size, self.upsampling)

    @property
    def head(self) -> nn.Module:
        """The decoder's head: conv1, conv2, conv3, activation2."""
        return (self.net.get_base_model() if isinstance(self.net, PeftModel) else self.net).head

    def raw(self, rgb: Tensor) -> Tensor:
        """(B, h, w) float32: what conv3 gives, before the last activation."""
        seen: list[Tensor] = []
        hook = self.head.activation2.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            self(rgb)
        finally:
            hook.remove()
        return seen[0].squeeze(1)

    def inverse_activation(self, target: Tensor) -> Tensor:
        """What `raw` has to give for `forward` to give `target`.

        A sigmoid's target is kept 0.001 from both its ends.
        """
        target = target / self.head.max_depth
        return (
            torch.logit(target, eps=1e-3)
            if isinstance(self.head.activation2, nn.Sigmoid)
            else target
        )

    @torch.no_grad()
    def rescale(self, scale: float, shift: float) -> None:
        """Let `raw` give scale * raw + shift from now on: folded into conv3, before LoRA is added."""
        assert (
            math.isfinite(scale) and math.isfinite(shift) and not isinstance(self.net, PeftModel)
        ), (scale, shift)
        self.head.conv3.weight.mul_(scale)
        self.head.conv3.bias.mul_(scale).add_(shift)
        self.calibrated = True

    def checkpoint_activations(self) -> None:
        """Keep only the input of each transformer layer for the way back and compute the rest again
        there.
        """
        compiled = (
            self.net._compiled_call_impl is not None
        )  # a compiled way back has the keys among its inputs
        options = {} if compiled else {"context_fn": self.draws.contexts}
        self.net.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False, **options}
        )

    def use_eager_attention(self) -> None:
        """Attention as two matrix products: in bf16 on a CPU 1.5 times as fast as torch's fused
        kernel for a hundred tokens, even for a thousand.
        """
        net = self.net.get_base_model() if isinstance(self.net, PeftModel) else self.net
        net.backbone.set_attn_implementation("eager")

    def compile(self) -> None:
        """Let torch.compile make kernels of the network at its next call.

        Parameters keep their names.
        """
        self.net.compile()
        if self.net.is_gradient_checkpointing:
            self.checkpoint_activations()

    def parameter_counts(self) -> tuple[int, int]:
        """Parameters that train, and all of them (peft's untouched originals of trained modules not
        counted).
        """
        used = [
            p
            for name, p in [*self.named_parameters(), *self.net.named_buffers()]
            if "original_module" not in name
        ]
        sizes = [getattr(p, "ds_numel", p.numel()) for p in used]
        return sum(n for p, n in zip(used, sizes) if p.requires_grad), sum(sizes)
