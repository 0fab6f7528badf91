"""A model as the host holds it, a ModelPatcher: its loading, its forwards, and what it carries."""
