"""What happens to a swap while it is open: residents come and go, memory runs out, it is closed."""
