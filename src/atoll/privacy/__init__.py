"""What protects clients: bounded and noised updates, and who may see what."""
