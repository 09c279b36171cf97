"""Weights that cannot be downloaded are one line with the option that takes a file."""

from urllib.error import URLError

import pytest
import requests

from recipes.nn import TimmEncoder, TorchvisionEncoder


def test_a_failed_download_of_torchvision_names_the_option_for_a_file(monkeypatch):
    def fail(url, **options):
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(OSError, match=r"weights DEFAULT of resnet18 cannot .*no route.*\(--model.encoder.weights FILE"):
        TorchvisionEncoder("resnet18", weights="DEFAULT")


def test_a_failed_download_of_timm_names_the_options_for_a_file(monkeypatch):
    def fail(*args, **options):
        raise requests.ConnectionError("no route to host\nmore")

    monkeypatch.setattr("timm.models._builder.load_pretrained", fail)
    with pytest.raises(OSError, match=r"pretrained weights of resnet10t .*\(no route to host\).*false .*FILE"):
        TimmEncoder("resnet10t", pretrained=True)
