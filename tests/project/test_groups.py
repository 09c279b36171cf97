"""Tests that share whole runs are sent to one process, or every process would make those runs again."""

import os

import pytest


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="this is one process")
def test_a_test_goes_with_those_of_its_group(request):
    group = request.node.get_closest_marker("xdist_group").args[0]
    assert request.node.nodeid.endswith(f"@{group}")
