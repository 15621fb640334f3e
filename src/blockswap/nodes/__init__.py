"""The ComfyUI nodes, and what makes block swap work through ComfyUI's model patcher."""
