"""What a run trains on: prompts, photos, and what is kept of them on the disk."""
