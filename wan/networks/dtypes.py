"""What a precision is in torch: DTYPES["bf16"] is torch.bfloat16, and PRECISIONS is the way back."""

import torch

from wan.levers import Precision

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
PRECISIONS = {dtype: precision for precision, dtype in DTYPES.items()}
