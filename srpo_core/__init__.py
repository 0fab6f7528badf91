"""SRPO / Direct-Align in pure PyTorch (arXiv 2509.06942); knows nothing of ComfyUI."""
