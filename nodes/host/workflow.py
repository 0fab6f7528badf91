"""The workflow that a node runs in, as pictures hold it."""

from typing import Any

from comfy.cli_args import args
from comfy_api.latest import io


def workflow_of(hidden: io.HiddenHolder | None) -> dict[str, Any]:
    """What a picture must hold for its workflow to open when it is dragged in; nothing where the host shall not say.

    hidden: an output node's, to which the host gives the prompt and the workflow.
    """
    if args.disable_metadata or not hidden:
        return {}
    # The host writes into the prompt what it has asked of fingerprints: NaN of ours, which a browser can't read.
    prompt = {key: {k: v for k, v in node.items() if k != "is_changed"} for key, node in (hidden.prompt or {}).items()}
    return {"prompt": prompt, **(hidden.extra_pnginfo or {})}
