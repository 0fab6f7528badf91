"""SRPO without ComfyUI: diffusers' FLUX and VAEs, peft's LoRA (the optional extra `headless`)."""
