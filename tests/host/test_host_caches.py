"""ComfyUI may keep node outputs, as it does in the other tests, keep some, or keep none: a run goes on all the same."""

import json

import prompts
import pytest
from host_server import HostServer


@pytest.mark.parametrize("policy", [("--cache-none",), ("--cache-lru", "100")], ids=" ".join)
def test_a_run_goes_on_under_every_cache_policy(comfyui, tmp_path, policy):
    with HostServer(comfyui, tmp_path, (*policy, "--disable-api-nodes")) as host:
        for seed in range(2):
            host.run(prompts.one_step("steps", seed))
        for _ in range(2):
            host.run(prompts.train("loop", 1))
        host.run(prompts.train("other", 1))  # closes "steps", and so saves it
        counts = {run: json.loads((tmp_path / f"output/srpo/{run}/run.json").read_text()) for run in ("steps", "loop")}
        assert [about["updates"] for about in counts.values()] == [2, 2]
