"""Prompts as a dataset: encoded once, then handed out in batches."""

import torch
from torch import Tensor
from transformers import CLIPModel, PreTrainedTokenizerBase


class ClipPrompts:
    """Prompts encoded by the text tower of a transformers CLIPModel (see `protocols.Dataset`).

    cond: "context" (B, T, D) is its last hidden state, padding included; "pooled" (B, D) the state at the end of
    the text, not projected. Raises ValueError without a prompt.
    """

    def __init__(self, prompts: list[str], clip: CLIPModel, tokenizer: PreTrainedTokenizerBase):
        if not prompts:
            raise ValueError("There is no prompt to train on: give at least one.")
        self.prompts = list(prompts)
        tokens = tokenizer(self.prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            encoded = clip.text_model(input_ids=tokens.to(clip.device))
        self.context = encoded.last_hidden_state
        self.pooled = encoded.pooler_output

    def content(self) -> list[str]:
        return self.prompts

    def prepare(self, indices: list[int]):
        """All are encoded."""

    def cond(self, indices: list[int]) -> dict[str, Tensor]:
        return {"context": self.context[indices], "pooled": self.pooled[indices]}

    def cond_shape(self, index: int) -> tuple[int, ...]:
        return tuple(self.context[index].shape)
