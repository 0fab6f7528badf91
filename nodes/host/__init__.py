"""All that knows ComfyUI's internals: its loaded models as the core's FlowModel, Decoder and Reward."""
