"""ComfyUI-SRPO: fine-tune the FLUX that ComfyUI loaded, with a reward steered by words."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
