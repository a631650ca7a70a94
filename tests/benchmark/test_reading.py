"""Files that people write or bring, read with care."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmark.errors import InputError
from benchmark.reading import check_numbers


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ({"num_hidden_layers": 10**6}, "num_hidden_layers 1000000 is beyond 512"),
        ({"vision": {"depths": [2, 2, 9000]}}, "depths 9000 is beyond 512"),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps 1000000000 is beyond 100000"),
        ({"in_channels": -(10**12)}, "in_channels -1000000000000 is beyond 10000000"),
        ({"block_out_channels": [320, 640, 1280], "layers_per_block": 2, "sample_size": 64}, None),
        ({"label2id": {"layered_sleeves": 8000, "on_stage": 8001}, "layer_norm_eps": 1e-5}, None),
    ],
)
def test_numbers_that_no_model_has(config: dict[str, Any], refused: str | None) -> None:
    if refused is None:
        check_numbers(Path("config.json"), config)
    else:
        with pytest.raises(InputError, match=f"^config.json: {refused}"):
            check_numbers(Path("config.json"), config)
