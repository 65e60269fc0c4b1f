"""What the processor can, how that is hidden, and what is chosen by it."""

import logging

import pytest
import torch

from raycurate.models import devices
from raycurate.models.options import EncoderOptions

CPU = torch.device("cpu")
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
WIDE = {"avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"}


@pytest.fixture
def sapphire(monkeypatch):
    """A processor with every unit, by what torch reports; the environment hides none."""
    for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    reported = dict.fromkeys(WIDE, True) | {"avx512_fp16": False, "cpu_name": "a name", "l2_cache_size": 1}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: reported)
    return monkeypatch


@pytest.mark.parametrize(
    ("environment", "left"),
    [
        ({}, WIDE),
        (AVX2, {"avx2"}),
        ({"ATEN_CPU_CAPABILITY": "avx2"}, {"avx2"}),
        ({"ONEDNN_MAX_CPU_ISA": "avx2_vnni"}, {"avx2"}),
        ({"ATEN_CPU_CAPABILITY": "default"}, set()),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, {"avx2", "avx512_f", "avx512_vnni"}),
        ({"DNNL_MAX_CPU_ISA": "AVX512_CORE_VNNI"}, {"avx2", "avx512_f", "avx512_vnni"}),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, {"avx2", "avx512_f", "avx512_vnni", "avx512_bf16"}),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX", "ATEN_CPU_CAPABILITY": "avx512"}, WIDE),
        ({"ONEDNN_MAX_CPU_ISA": "ALL"}, WIDE),
    ],
)
def test_the_environment_hides_units(sapphire, environment, left):
    for name, value in environment.items():
        sapphire.setenv(name, value)
    assert devices.cpu_units() == left
    assert devices.multiplies_bfloat16(CPU) == bool(left & {"avx512_bf16", "amx_bf16"})


def test_auto_is_float32_where_bfloat16_is_imitated(sapphire):
    options = EncoderOptions(model="m")
    assert devices.choose_dtype(options, CPU) == torch.bfloat16
    for name, value in AVX2.items():
        sapphire.setenv(name, value)
    assert devices.choose_dtype(options, CPU) == torch.float32
    assert not devices.bfloat16_is_faster(CPU)
    assert devices.choose_dtype(EncoderOptions(model="m", dtype="bfloat16"), CPU) == torch.bfloat16


def test_a_first_pass_needs_a_measured_gain(sapphire):
    for gain, faster in ((0.9, False), (1.1, False), (2.0, True)):
        sapphire.setattr(devices, "product_gain", lambda gain=gain: gain)
        assert devices.bfloat16_is_faster(CPU) == faster


def test_an_imitated_precision_is_a_warning_with_its_measured_cost(sapphire, caplog):
    caplog.set_level(logging.WARNING)
    sapphire.setattr(logging.getLogger("raycurate"), "propagate", True)
    sapphire.setattr(devices, "product_gain", lambda dtype, backward: 0.125 if backward else 0.25)
    devices.warn_if_imitated("bfloat16", CPU, where="precision", backward=True)
    devices.warn_if_imitated("float32", CPU, where="dtype")
    assert caplog.messages == []  # the units are there
    for name, value in AVX2.items():
        sapphire.setenv(name, value)
    devices.warn_if_imitated("bfloat16", CPU, where="precision", backward=True)
    devices.warn_if_imitated("float32", CPU, where="dtype")
    (said,) = set(caplog.messages)  # a logger that does not propagate may have pytest's handler twice
    assert said.startswith("precision=bfloat16") and "8.0 times slower" in said and "precision=auto" in said


def test_the_gain_is_a_measurement_of_this_processor():
    precision = torch.get_float32_matmul_precision()
    assert devices.product_gain() == devices.product_gain() > 0  # kept for the process
    assert torch.get_float32_matmul_precision() == precision
