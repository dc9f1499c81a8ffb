"""FSDP2 that computes what a single process does: precision and gradient accumulation of a sharded model.

Accelerate's policy for bf16 casts everything to bf16, the loss and the sum of gradients over processes included. Here
the parameters are gathered in bf16 and multiplied under autocast, as without FSDP, while the residual stream, norms,
RoPE's tables, the loss and the gradients' sum stay in fp32. For fp16 likewise.
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from nanogpt.model import GPT, CausalSelfAttention, rms_norm
from nanogpt.ops.cpu import FusedRMSNorm

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # by Accelerate's names of precisions


def configure(accelerator: Accelerator, model: GPT) -> None:
    """Readies a model and Accelerate for sharding, before `accelerator.prepare`; without FSDP it changes nothing."""
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    # gradients are added up and sharded after each micro-batch: until the last, every process would keep whole ones
    accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = True
    if dtype := DTYPES.get(accelerator.mixed_precision):
        from torch.distributed.fsdp import MixedPrecisionPolicy

        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, output_dtype=torch.float32, cast_forward_inputs=False
        )
        keep_fp32(model)
        model.forward = torch.autocast(accelerator.device.type, dtype)(model.forward)


def keep_fp32(model: GPT) -> None:
    """Lets norms and embeddings compute in fp32 from parameters that were gathered in half precision, in place."""
    for module in model.modules():
        module.__class__ = FP32.get(type(module), type(module))
        if isinstance(module, CausalSelfAttention):
            module.rms_norm = fp32_rms_norm


class FP32LayerNorm(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), bias, self.eps)


class FP32RMSNorm(nn.RMSNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return fp32_rms_norm(x, self.weight, self.eps)


class FP32Embedding(nn.Embedding):
    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        return super().forward(idx).float()


def fp32_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`model.rms_norm` in fp32, whatever the dtype of the weight."""
    return rms_norm(x, weight.float(), eps)


FP32 = {nn.LayerNorm: FP32LayerNorm, nn.RMSNorm: FP32RMSNorm, nn.Embedding: FP32Embedding, FusedRMSNorm: FP32RMSNorm}
