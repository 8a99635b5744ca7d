"""Dropout that costs little on a CPU, where PyTorch draws a number in double precision for each element, on one core.

Here 16 random bits decide about an element, so that a probability is rounded to a multiple of 2**-16 (0.1 to 0.100006).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEVELS = 2**16


def dropout(x: Tensor, p: float) -> Tensor:
    """Zeroes each element with probability p and scales the others so that the mean stays. A GPU has its own kernel."""
    if x.device.type != "cpu":
        return F.dropout(x, p)
    dropped = round(p * _LEVELS)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # 64 random bits each
    kept = words.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - _LEVELS // 2
    return x * kept.to(x.dtype).mul_(_LEVELS / (_LEVELS - dropped))


class Dropout(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p) if self.training and self.p else input


def use_cheap_dropout(model: nn.Module) -> None:
    """Puts this dropout in the place of PyTorch's in a model."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p))
