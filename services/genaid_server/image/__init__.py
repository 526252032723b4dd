"""The image worker: one engine, and the images that it makes."""
