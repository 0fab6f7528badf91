"""The toy world: drawn pictures, and tiny FLUX, VAE, CLIP and judge models trained on them."""
