"""What the ComfyUI of the tests has beside the pack, as users' have: nodes of others, and models elsewhere."""

import re
import shutil
from pathlib import Path

OTHERS = Path(__file__).with_name("other_packs")
OWN_REWARD = Path(__file__).parents[2] / "docs/own_reward.md"


def put_beside(base: Path) -> list[str | Path]:
    """Writes them under a host's base directory, and gives the arguments with which it takes them."""
    nodes = base / "custom_nodes"
    shutil.copytree(OTHERS, nodes, ignore=shutil.ignore_patterns("__pycache__"))
    source = re.search(r"```python\n(.*?)```", OWN_REWARD.read_text("utf-8"), re.DOTALL)[1]
    (nodes / "brightness_reward.py").write_text(source)
    listed = sorted(file.name for file in nodes.iterdir())
    (base / "elsewhere").mkdir()
    (base / "extra.yaml").write_text(f"mine:\n  base_path: {base}\n  rewards: elsewhere\n")
    # More names on the white list, then the rest; without nodes that ask a service a ComfyUI starts sooner.
    return [*listed, "--extra-model-paths-config", base / "extra.yaml", "--disable-api-nodes"]
