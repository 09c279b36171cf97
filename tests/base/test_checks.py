from types import SimpleNamespace

import pytest
import torch

from recipes.base.checks import check_precision


@pytest.mark.parametrize(
    ("precision", "device", "supported", "warned"),
    [
        ("bf16-mixed", "cuda", False, True),
        ("bf16-mixed", "cuda", True, False),
        ("bf16-mixed", "cpu", False, False),
        ("16-mixed", "cuda", False, False),
    ],
)
def test_a_gpu_that_only_emulates_bfloat16_is_named(precision, device, supported, warned, monkeypatch, recwarn):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported or including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    strategy = SimpleNamespace(root_device=torch.device(device))
    check_precision(SimpleNamespace(trainer=SimpleNamespace(precision=precision, strategy=strategy)))
    words = "precision is bf16-mixed, and Tesla T4 computes in bfloat16 by emulation, which is slow: use 16-mixed"
    assert [str(each.message) for each in recwarn] == [words] * warned
