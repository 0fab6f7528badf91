"""Gradients through a frozen model of the host, at little memory and the host's own speed."""
