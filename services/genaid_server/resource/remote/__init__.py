"""What is reached over the internet: the hub, plain addresses, and what guards them."""
