"""FSDP2 that computes what a single process does: precision and gradient accumulation.

Accelerate's policy for bf16 casts everything to bf16, even the loss and the sum of gradients over
processes. Here the parameters are gathered in bf16 and multiplied under `accelerator.autocast()`,
as without FSDP, while the residual stream, norms, RoPE's tables, the loss and the gradients' sum
stay in fp32. The same for fp16.
"""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from nanogpt.model import GPT, Ops

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # by Accelerate's names of precisions


def configure(accelerator: Accelerator, model: GPT) -> None:
    """Prepares a model for sharding, before `accelerator.prepare`; changes nothing without FSDP."""
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    # shards gradients after each micro-batch; otherwise whole ones are kept until the last
    accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = True
    if dtype := DTYPES.get(accelerator.mixed_precision):
        from torch.distributed.fsdp import MixedPrecisionPolicy

        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=dtype,
            reduce_dtype=torch.float32,
            output_dtype=torch.float32,
            cast_forward_inputs=False,
        )
        model.use(fp32_outside_of_matmuls(model.ops))


def fp32_outside_of_matmuls(ops: Ops) -> Ops:
    """Norms and embeddings in fp32, from parameters that were gathered in half precision."""

    def rms_norm(x, weight, eps):
        return ops.rms_norm(x, weight.float(), eps)

    def layer_norm(x, shape, weight, bias, eps):
        bias = None if bias is None else bias.float()
        return ops.layer_norm(x.float(), shape, weight.float(), bias, eps)

    def embedding(idx, weight):
        return ops.embedding(idx, weight).float()

    return ops._replace(rms_norm=rms_norm, layer_norm=layer_norm, embedding=embedding)
