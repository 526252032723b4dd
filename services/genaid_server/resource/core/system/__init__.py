"""What the machine has: processor, memory, GPUs, and what our engines hold of it."""
