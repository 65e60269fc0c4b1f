"""How much arithmetic training is, and how much a device can do: for the fraction of peak and for plans.

Only what the model itself needs is counted (model FLOPs): a layer that is computed again for the sake of memory, or
GradCache's first pass, makes the fraction of peak smaller and not larger.
"""

from __future__ import annotations

from dataclasses import dataclass

TERA, GIB = 10**12, 2**30


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one training step's forward and backward passes, per token.

    Attributes:
        per_token: of the linear layers. per_pair: of attention, for each token and each token that it attends to.
    """

    per_token: int
    per_pair: int

    def of(self, tokens: float, pairs: float = 0.0) -> float:
        """Operations for so many tokens.

        Args:
            pairs: the sum of the squared lengths of the texts.
        """
        return self.per_token * tokens + self.per_pair * pairs


def training_flops(multiplied: int, multiplied_trainable: int, attention_width: int) -> Flops:
    """Operations of training: 6 N a token and 12 A a pair, a multiplication and an addition being two.

    Of each multiplied weight the forward pass needs 2 operations a token, the gradient of its input 2 more and its
    own gradient, which a frozen weight does not have, another 2 (Kaplan et al. 2020, Scaling Laws for Neural Language
    Models, arXiv:2001.08361, section 2.1). Attention's two products need 4 operations a pair and unit of width
    forwards and 8 backwards (Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B: 12 L H Q T a token). That
    a causal model computes half of the pairs is not counted, as there.

    Args:
        multiplied: N, weights that each token is multiplied with. multiplied_trainable: the trainable ones.
        attention_width: A, heads x head size summed over the layers.
    """
    return Flops(per_token=4 * multiplied + 2 * multiplied_trainable, per_pair=12 * attention_width)


@dataclass(frozen=True)
class Device:
    """A GPU by its data sheet.

    Attributes:
        bf16: dense matrix products in bfloat16 (float16 where it has no bfloat16), operations a second.
        memory: bytes.
    """

    bf16: float
    memory: int


# NVIDIA's data sheets, without sparsity. The first entry all of whose words are in the device's name is taken, so
# the narrower ones come first. A name that fits cards of two sizes stands for the smaller one.
_DEVICES: tuple[tuple[str, Device], ...] = (
    ("GB300", Device(2500 * TERA, 277 * GIB)),
    ("B300", Device(2250 * TERA, 268 * GIB)),
    ("GB200", Device(2500 * TERA, 184 * GIB)),
    ("B200", Device(2250 * TERA, 178 * GIB)),
    ("GH200", Device(989 * TERA, 94 * GIB)),
    ("H200 NVL", Device(836 * TERA, 139 * GIB)),
    ("H200", Device(989 * TERA, 139 * GIB)),
    ("H100 NVL", Device(835 * TERA, 93 * GIB)),
    ("H100 PCIE", Device(756 * TERA, 79 * GIB)),
    ("H100", Device(989 * TERA, 79 * GIB)),
    ("H20", Device(148 * TERA, 95 * GIB)),
    ("A100 80G", Device(312 * TERA, 79 * GIB)),
    ("A100 80GB", Device(312 * TERA, 79 * GIB)),
    ("A100", Device(312 * TERA, 39 * GIB)),
    ("L40S", Device(362 * TERA, 44 * GIB)),
    ("L40", Device(181 * TERA, 44 * GIB)),
    ("L4", Device(121 * TERA, 22 * GIB)),
    ("A10G", Device(70 * TERA, 22 * GIB)),
    ("A10", Device(125 * TERA, 22 * GIB)),
    ("A40", Device(150 * TERA, 44 * GIB)),
    ("A6000", Device(155 * TERA, 47 * GIB)),
    ("V100 32GB", Device(125 * TERA, 31 * GIB)),
    ("V100", Device(125 * TERA, 15 * GIB)),
    ("T4", Device(65 * TERA, 14 * GIB)),
)


def device_named(name: str) -> Device | None:
    """The GPU of this name (torch's "NVIDIA H100 80GB HBM3", Ray's "H100"), None where it is not known."""
    words = set(name.upper().replace("-", " ").split())
    return next((device for key, device in _DEVICES if set(key.split()) <= words), None)


def peak_flops(name: str, precision: str) -> float | None:
    """Operations a second that the GPU `name` can do at most in `precision`; None where that is not known.

    Known are bfloat16 and float16. For float32 it is not: whether TF32 is used is a setting.
    """
    device = device_named(name)
    return device.bf16 if device is not None and precision in ("bfloat16", "float16") else None
