"""The network: uint8 images in, normalized inverse depth out.

    model = load_base("tiny")  # a DepthModel; base_model.py loads, lora.py chooses what trains
    pred = model(rgb)          # (B, h, w, 3) uint8 -> (B, h, w) float32

Also which of its layers may be rounded to half precision, and which never.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from peft import PeftModel
from torch import Tensor, nn

from depthdist.geometry.resampling import upsample
from depthdist.models.sample_dropout import DropoutKeys

Normalization = tuple[tuple[float, float, float], tuple[float, float, float]]


def use_full_float32() -> None:
    """Let this process compute float32 convolutions and matrix products in float32, not in TF32.

    TF32 has a mantissa of 10 bits: an error of a millimetre at 1.5 m. It is cuDNN's default, and
    where NVIDIA's containers set TORCH_ALLOW_TF32_CUBLAS_OVERRIDE that of matrix products too.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


class Float32Conv2d(nn.Conv2d):
    """A convolution that computes in float32, whatever its own and its input's precision.

    One fp16 ulp of the network's output is half a millimetre at 1.5 m, so the last layers of the
    head must not round to it. Where it is frozen its weights are buffers (`to_buffers`), which stay
    in float32 too.
    """

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> Float32Conv2d:
        """Return the same convolution in float32, with the very parameters of `conv`."""
        made = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type] # a pair; torch says tuple[int, ...]
            stride=conv.stride,  # type: ignore[arg-type]
            padding=conv.padding,  # type: ignore[arg-type]
            bias=conv.bias is not None,
            device="meta",  # the parameters are replaced
        )
        made.weight = conv.weight
        made.bias = conv.bias
        return made.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x`, (B, C, H, W) of any precision, to float32, also inside torch.autocast."""
        kind = x.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return self.forward(x)
        bias = None if self.bias is None else self.bias.float()
        return self._conv_forward(x.float(), self.weight.float(), bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Move buffers to another device, but keep their precision; `half()` and `to()` call it."""

        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if isinstance(tensor, nn.Parameter) or moved.dtype == tensor.dtype:
                return moved
            return tensor.to(moved.device)

        return super()._apply(keep_precision, recurse)


def to_buffers(module: nn.Module) -> None:
    """Freeze `module`: turn its parameters into buffers of the same names.

    DeepSpeed neither casts nor partitions buffers.
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
    """A DA-V2, with or without LoRA, that takes images as they are stored.

    net            DepthAnythingForDepthEstimation, or the PeftModel around it
    name           what `--model` named
    fresh_decoder  the decoder has no pretrained weights and is trained too
    normalization  mean and standard deviation of the images, three numbers each
    calibrated     `rescale` changed the head's last convolution: the adapter contains it
    upsampling     how its output is resampled to the ground truth's size
    dropout_keys   what the dropouts in `net` share
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: nn.Module, name: str, fresh_decoder: bool, normalization: Normalization
    ):
        super().__init__()
        self.net: Any = net  # torch's types know nothing of a module's attributes
        self.name = name
        self.fresh_decoder = fresh_decoder
        self.calibrated = False
        self.dropout_keys = DropoutKeys()
        self.upsampling: Literal["bicubic", "bilinear"] = "bicubic"
        self.set_normalization(normalization)

    def set_normalization(self, normalization: Normalization) -> None:
        """Set mean and standard deviation of the images, of red, green and blue in 0..1."""
        mean, std = normalization
        self.normalization = cast(Normalization, (tuple(mean), tuple(std)))
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, rgb: Tensor, draws: Tensor | None = None) -> Tensor:
        """Return normalized inverse depth (B, h, w) float32, >= 0, of images (B, h, w, 3) uint8.

        draws  (B,) int64 from `sample_dropout.draw_keys`, for training with dropout: they alone
               decide which elements are dropped
        """
        if self.training and self.dropout_keys.num_layers:
            assert draws is not None, "training with dropout needs the samples' draws"
            self.dropout_keys.set(draws, rgb.device)
        pixels = rgb.permute(0, 3, 1, 2).float() / 255  # (B, 3, h, w)
        pixels = (pixels - self.mean) / self.std
        dtype = next(self.net.parameters()).dtype
        return self.net(pixel_values=pixels.to(dtype)).predicted_depth.float()

    def upsampled(self, pred: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
        """Return `pred` (B, h, w), of `forward` or `raw`, at the ground truth's size (B, H, W)."""
        height, width = size
        return upsample(pred, (height, width), self.upsampling)

    @property
    def base_net(self) -> Any:
        """The DepthAnythingForDepthEstimation, without the PeftModel around it."""
        return self.net.get_base_model() if isinstance(self.net, PeftModel) else self.net

    @property
    def head(self) -> Any:
        """The decoder's head: conv1, conv2, conv3, activation2."""
        return self.base_net.head

    def raw(self, rgb: Tensor) -> Tensor:
        """Return the output of conv3, before the last activation, (B, h, w) float32."""
        seen: list[Tensor] = []
        hook = self.head.activation2.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            self(rgb)
        finally:
            hook.remove()
        return seen[0].squeeze(1)

    def inverse_activation(self, target: Tensor) -> Tensor:
        """Return what `raw` has to be for `forward` to be `target`.

        The target of a sigmoid is clamped to 0.001..0.999.
        """
        target = target / self.head.max_depth
        if isinstance(self.head.activation2, nn.Sigmoid):
            return torch.logit(target, eps=1e-3)
        return target

    @torch.no_grad()
    def rescale(self, scale: float, shift: float) -> None:
        """Change `raw` to scale * raw + shift, by changing conv3; only before LoRA is added."""
        assert math.isfinite(scale) and math.isfinite(shift), (scale, shift)
        assert not isinstance(self.net, PeftModel)
        self.head.conv3.weight.mul_(scale)
        self.head.conv3.bias.mul_(scale).add_(shift)
        self.calibrated = True

    def checkpoint_activations(self) -> None:
        """Keep only the input of each transformer layer, and recompute the rest in backward."""
        # a compiled backward has the dropout keys among its inputs, so it needs no contexts
        is_compiled = self.net._compiled_call_impl is not None
        options = {} if is_compiled else {"context_fn": self.dropout_keys.contexts}
        self.net.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False, **options}
        )

    def use_eager_attention(self) -> None:
        """Compute attention as two matrix products instead of torch's fused kernel.

        In bf16 on a CPU that is 1.5 times as fast for a hundred tokens and as fast for a thousand.
        """
        self.base_net.backbone.set_attn_implementation("eager")

    def compile(self) -> None:
        """Let torch.compile compile the network at its next call; parameters keep their names."""
        self.net.compile()
        if self.net.is_gradient_checkpointing:
            self.checkpoint_activations()

    def parameter_counts(self) -> tuple[int, int]:
        """Return the number of parameters that train and of all parameters.

        The unused originals that peft keeps beside trained modules do not count.
        """
        trained = total = 0
        for name, parameter in [*self.named_parameters(), *self.net.named_buffers()]:
            if "original_module" not in name:
                size = getattr(parameter, "ds_numel", parameter.numel())
                total += size
                if parameter.requires_grad:
                    trained += size
        return trained, total
