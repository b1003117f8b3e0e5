"""What more than one implementation must do alike, as base classes of tests."""

import pytest

for _module in ("queues", "items", "moves", "telemetry"):
    pytest.register_assert_rewrite(f"tests.contract.server_{_module}")
