"""The resource manager's services: each call converts, asks the core, and converts back."""
